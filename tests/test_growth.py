"""Promise 7: a run on a stream that grew is the run on the stream that was there from the start.

Tasks come before the run, between two commands, while another task is trained, and while the run
waits for them; under kills, on several ranks, under every engine.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import MOMENTS, RANK, Setting, outcome, run_ranks, unused_port

from kaizen_dist.config import Config
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.context import start
from kaizen_dist.models.export import export
from kaizen_dist.models.network import load_model
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.training.growth import same_view
from kaizen_dist.views.bad_samples import decode_row

pytestmark = pytest.mark.timeout(900)

GROUPS = [["0", "1"], ["7", "2", "4"], ["3"], ["9", "8"]]
"""Classes by task, numbered as they come: not in the order of their names."""
QUICK = ("checkpoint.every_steps=1", "classifier.logit_adjustment=1.0", "eval.ncm=true")


def grow(stream: Path, group: list[str]) -> None:
    extend(stream, "digits", classes=group, progress=False)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory) -> Path:
    """The stream with all of its tasks."""
    folder = tmp_path_factory.mktemp("s") / "s"
    return prepare("digits", folder, classes_per_task=GROUPS, progress=False).root


@pytest.fixture
def begun(tmp_path) -> Path:
    """The stream with its first task."""
    folder = tmp_path / "stream"
    return prepare("digits", folder, classes_per_task=GROUPS[:1], progress=False).root


@pytest.fixture(scope="module")
def config(tmp_path_factory, configs) -> Path:
    file = tmp_path_factory.mktemp("config") / "moco.yaml"
    Setting("mocov2plus", "torch", 1).write(file, configs)
    return file


def arguments(config: Path, stream: Path, run: Path, *overrides: str) -> list[str]:
    given = Setting("mocov2plus", "torch", 1).arguments(config, stream, run)
    return [*given, *QUICK, *overrides]


def kaizen(given: list[str], code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kaizen_dist", *given],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def undisturbed(shared_folder, config, at_once):
    """`undisturbed(world, *overrides)`: the run on the whole stream."""
    made: dict[tuple, dict] = {}

    def run(world: int, *overrides: str) -> dict:
        key = (world, *overrides)
        if key not in made:
            folder = shared_folder / f"whole{len(made)}"
            given = arguments(config, at_once, folder, "--procs", str(world), *overrides)
            kaizen(given)
            made[key] = outcome(folder)
        return made[key]

    return run


def test_the_streams_are_one(at_once, begun):
    for group in GROUPS[1:]:
        grow(begun, group)
    whole, grown = Stream.open(at_once), Stream.open(begun)
    assert grown.fingerprint == whole.fingerprint
    assert grown.classes == ["0", "1", "7", "2", "4", "3", "9", "8"]


WORLDS = [1, 2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("world", WORLDS)
def test_tasks_that_come_between_two_commands(tmp_path, config, begun, undisturbed, world):
    """One by one, and two at a time."""
    run = tmp_path / "run"
    given = arguments(config, begun, run, "--procs", str(world))
    kaizen(given)
    for groups in (GROUPS[1:2], GROUPS[2:]):
        for group in groups:
            grow(begun, group)
        kaizen(["resume", str(run), "--procs", str(world)] if len(groups) == 1 else given)
    assert outcome(run) == undisturbed(world)


ENGINES = [
    pytest.param(("parallel.engine=fsdp",), id="fsdp"),
    pytest.param(("parallel.engine=deepspeed", "parallel.zero_stage=1"), id="zero1"),
    pytest.param(("parallel.engine=deepspeed", "parallel.zero_stage=3"), id="zero3"),
]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_under_every_engine(tmp_path, config, begun, undisturbed, engine):
    """Equal bit for bit with the whole stream under the same engine."""
    run = tmp_path / "run"
    given = arguments(config, begun, run, "--procs", "2", *engine)
    kaizen(given)
    for group in GROUPS[1:]:
        grow(begun, group)
    kaizen(given)
    assert outcome(run) == undisturbed(2, *engine)


def test_tasks_that_come_while_another_is_trained(tmp_path, config, begun, undisturbed):
    """The run takes them up when its task ends; what it has begun is not disturbed."""
    run = tmp_path / "run"
    given = arguments(config, begun, run)
    log = tmp_path / "log"
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("killed_rank.py"), *given],
            env=os.environ | {"PAUSE_AT": "kaizen_dist.engine.base:Engine.step after 2"},
            stderr=said,
        )
        wait_for(lambda: (run / "paused").exists() or process.poll() is not None)
        for group in GROUPS[1:]:
            grow(begun, group)
        (run / "paused").unlink()
        assert process.wait(300) == 0, log.read_text()
    assert "the stream has grown from 1 to 4 tasks" in log.read_text()
    assert outcome(run) == undisturbed(1)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_waits_for_its_next_task(tmp_path, config, begun, undisturbed, world):
    """Until it is told to end, with all saved."""
    run = tmp_path / "run"
    given = arguments(config, begun, run, "--procs", str(world), "--follow", "--poll", "0.2")
    with subprocess.Popen(
        [sys.executable, "-m", "kaizen_dist", *given], stderr=subprocess.PIPE, text=True
    ) as process:
        for tasks, group in enumerate(GROUPS[1:], 1):
            wait_for(lambda n=tasks: learnt(run) == n)
            grow(begun, group)
        wait_for(lambda: learnt(run) == len(GROUPS))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "waiting for the next task" in said
    assert "Traceback" not in said
    assert outcome(run) == undisturbed(world)


BETWEEN = {
    "when it looks for tasks": ("kaizen_dist.training.trainer:Trainer.look_for_tasks", 1, False),
    "as it sees new ones": ("kaizen_dist.training.trainer:grown", 1, False),
}
"""Moments between the old task and the new one, beside those in MOMENTS."""


def killed_run(config: Path, folder: Path, chance: random.Random, most: int) -> list[str]:
    """A run that is killed while its stream grows, and ends in `folder`/run; at which moments."""
    stream = prepare("digits", folder / "stream", classes_per_task=GROUPS[:1], progress=False).root
    given, groups = arguments(config, stream, folder / "run"), GROUPS[1:]
    moments, hit = MOMENTS | BETWEEN, []
    while len(hit) < most or groups:
        if groups and chance.random() < 0.5:
            grow(stream, groups.pop(0))
        # Half of them between the tasks.
        what = chance.choice(sorted(chance.choice([MOMENTS, BETWEEN])))
        target, calls, _ = moments[what]
        moment = f"{target} {chance.choice(['before', 'after'])} {chance.randint(1, calls)}"
        if any(run_ranks(given, 1, {0: moment})):
            hit.append(what)
        elif groups:
            grow(stream, groups.pop(0))
        else:
            break
    assert run_ranks(given, 1, {}) == [0]
    return hit


MANY = [pytest.mark.slow, pytest.mark.timeout(5000)]


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=MANY)])
def test_killed_while_tasks_come(tmp_path, config, undisturbed, kills):
    hit, chance = [], random.Random(kills)
    while len(hit) < kills:
        folder = tmp_path / f"after {len(hit)}"
        folder.mkdir()
        more = killed_run(config, folder, chance, kills - len(hit))
        assert more
        assert outcome(folder / "run") == undisturbed(1), more
        hit += more
        print(f"{len(hit)} kills, this run's: {more}")
    assert kills < 50 or set(hit) > set(BETWEEN)


def test_other_numbers_of_ranks_go_on_with_the_same_samples(tmp_path, config, begun, at_once):
    """2, 4, 1 and 2 ranks, a task each: sums over ranks differ by rounding, samples do not."""
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    samples = {}
    for run, stream in ((grown, begun), (whole, at_once)):
        taken = []
        for number, world in enumerate((2, 4, 1, 2)):
            if run == grown and number > 0:
                grow(begun, GROUPS[number])
            given = arguments(config, stream, run, "--until", str(number + 1))
            records = [tmp_path / f"{run.name}-{number}-{rank}" for rank in range(world)]
            assert record(given, world, records) == [0] * world
            by_rank = [[json.loads(line) for line in r.read_text().splitlines()] for r in records]
            # One rank's after the other's: the global batch in its order.
            taken += [
                [id for row in step for id in row["ids"]] for step in zip(*by_rank, strict=True)
            ]
        samples[run] = taken
    assert samples[grown] == samples[whole]
    assert outcome(grown) == outcome(whole), "with equal ranks in each task"


def record(given: list[str], world: int, files: list[Path]) -> list[int]:
    """Train on some ranks, which write down the ids of their samples; their exit codes."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port())}
    sizes = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank, file in enumerate(files):
        place = address | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment = os.environ | (place if world > 1 else {}) | {"RECORD_IDS": str(file)}
        ranks.append(
            subprocess.Popen(
                [sys.executable, str(RANK), *given], env=environment, stderr=subprocess.DEVNULL
            )
        )
    return [process.wait(300) for process in ranks]


def test_a_finished_run_is_left_alone_until_a_task_comes(tmp_path, config, begun):
    run = tmp_path / "run"
    given = arguments(config, begun, run)
    kaizen(given)
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    for command in (given, [*given, "train.threads=2"], ["resume", str(run)]):
        assert "nothing to do" in kaizen(command)
    assert {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()} == before
    grow(begun, GROUPS[1])
    assert "resuming" in kaizen(given)
    results = json.loads((run / "results.json").read_text())
    assert (results["finished"], results["stream"]["tasks"]) == (True, 2)
    assert results["task_classes"] == [["0", "1"], ["7", "2", "4"]]
    assert [len(row) for row in results["accuracy"]] == [2, 2]


def test_a_model_of_every_task_knows_the_classes_of_its_time(tmp_path, config, begun):
    run, known = tmp_path / "run", []
    for number, group in enumerate(GROUPS):
        if number > 0:
            grow(begun, group)
        known += group
        kaizen(arguments(config, begun, run))
        model = load_model(export(run, number, tmp_path / f"export{number}"))
        assert list(model.description.classes) == known
        split = Stream.open(begun).split(number, "val")
        image = model.description.view.of([decode_row(split, 0)])
        assert model(image)[0].shape == (1, len(known))
    kaizen(["report", str(run)])
    page = (run / "report.html").read_text()
    assert all(f"task {number}" in page for number in (1, 2, 3, 4))


def test_a_softmax_over_all_classes_is_for_closed_streams(tmp_path, config, begun):
    run = tmp_path / "run"
    given = arguments(config, begun, run, "classifier.over=all")
    kaizen(given)
    grow(begun, GROUPS[1])
    said = kaizen(given, code=2)
    assert "classifier.over=all" in said
    assert "2 classes" in said
    # Known classes met again are no obstacle; what has been learnt is still there.
    assert json.loads((run / "results.json").read_text())["finished"]


def test_another_past_is_another_stream(tmp_path, config, begun):
    run = tmp_path / "run"
    kaizen(arguments(config, begun, run))
    other = prepare("digits", tmp_path / "o", classes_per_task=[["0", "2"], ["5"]], progress=False)
    assert "another stream" in kaizen(arguments(config, other.root, run), code=2)


@pytest.mark.parametrize("world", [1, 2])
def test_a_stream_that_is_replaced_ends_the_run_and_one_that_is_gone_does_not(
    tmp_path, config, begun, at_once, world
):
    run, manifest = tmp_path / "run", begun / "stream.json"
    given = arguments(config, begun, run, "--procs", str(world), "--follow", "--poll", "0.2")
    other = prepare("digits", tmp_path / "o", classes_per_task=[["0", "2"], ["5"]], progress=False)
    with subprocess.Popen(
        [sys.executable, "-m", "kaizen_dist", *given], stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: learnt(run) == 1)
        manifest.rename(tmp_path / "aside")
        time.sleep(1)
        assert process.poll() is None
        (other.root / "stream.json").rename(manifest)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 3, said
    assert "cannot look for new tasks" in said
    assert "another stream than when this run began" in said
    assert "Traceback" not in said


def views_of_a_growing_stream(root: str, rank_that_is_late: int) -> list[int]:
    """Tasks that a rank has seen, and those that it begins with."""
    with start(ParallelConfig(), threads=1) as context:
        late = context.rank == rank_that_is_late
        seen = None if late else Stream.open(root)
        context.barrier()
        if late:
            grow(Path(root), GROUPS[1])
            seen = Stream.open(root)
        context.barrier()
        return [len(seen), len(same_view(seen, Config(), context, print))]


@pytest.mark.parametrize("late", [0, 1])
def test_ranks_that_open_a_stream_while_it_grows_begin_alike(ranks, begun, late):
    views = ranks(views_of_a_growing_stream, 2, str(begun), late)
    assert [seen for seen, _ in views] == [1 + (rank == late) for rank in range(2)]
    assert [begins for _, begins in views] == [2, 2]


def learnt(run: Path) -> int:
    """Tasks that the run's results know."""
    file = run / "results.json"
    return len(json.loads(file.read_text())["accuracy"]) if file.exists() else 0


def wait_for(condition, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
