"""What a run's folder holds when training is refused, goes wrong, or has nothing to do."""

import json
import shutil
from pathlib import Path

import pytest
from finite import not_finite
from fuzzing import CASES, mutations, survive

from kaizen_dist.common.errors import DataError, KaizenError, UsageError
from kaizen_dist.config import load
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.context import RankContext, start
from kaizen_dist.engine.base import Engine
from kaizen_dist.engine.checkpoint import layout
from kaizen_dist.models.evaluate import evaluate
from kaizen_dist.runs import resume
from kaizen_dist.runs.checks import own_config, own_stream
from kaizen_dist.runs.results import Results
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.training.run import train
from kaizen_dist.views import choose

TINY = [
    "train.max_steps=4",
    "train.threads=1",
    "train.batch_size=16",
    "replay.batch_size=8",
    "model.backbone=tiny_backbone:Tiny",
    "classifier.hidden=16",
    "distill.hidden=16",
    "ssl.hidden=16",
    "ssl.dim=8",
    "ssl.predictor_hidden=16",
    "log.every_steps=100",
    "eval.bank=60",
    "eval.knn=false",
    "eval.forward_transfer=false",
]


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory):
    return prepare("digits", tmp_path_factory.mktemp("s") / "s", tasks=2, progress=False)


@pytest.fixture(scope="module")
def tiny(configs):
    """`tiny(*overrides)`: a small configuration."""
    return lambda *overrides: load(configs / "digits.yaml", [*TINY, *overrides])


@pytest.fixture(scope="module")
def ended_early(shared_folder, tiny, two_tasks) -> Path:
    """A run that ended after a step of its second task, which is saved."""
    run, step = shared_folder / "run", Engine.step

    def ends(engine, batch, number):
        if engine.learner.teacher is not None and number == 1:
            raise KeyboardInterrupt
        return step(engine, batch, number)

    given = tiny("checkpoint.every_steps=1", "checkpoint.asynchronous=false")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", ends)
        with pytest.raises(KeyboardInterrupt):
            train(given, two_tasks, run, RankContext())
    assert [p.name for p in layout.found(run)] == ["t01-s000000", "t01-s000001"]
    return run


@pytest.fixture
def begun(ended_early, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(ended_early, tmp_path / "run")


def go_on(run: Path, stream: Stream, *changes: str) -> Results:
    """As `resume RUN CHANGES --allow`."""
    given = own_config(run, changes, allow_changes=bool(changes))
    return train(given, stream, run, RankContext(), allow_changes=bool(changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- divergence -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "exploding"),
    [(2, ["optim.lr=1e30"]), (1, ["optim.lr=1e38", "optim.weight_decay=1e6"])],
)
def test_nothing_is_saved_that_is_not_finite_and_the_cure_works(
    tmp_path, tiny, two_tasks, every, exploding
):
    """First a loss is not finite; then the weights, after a step whose loss was."""
    run, saving = tmp_path / "run", f"checkpoint.every_steps={every}"
    with pytest.raises(KaizenError) as caught:
        train(tiny(saving, *exploding), two_tasks, run, RankContext())
    said = str(caught.value)
    assert "is not finite" in said
    assert not_finite(run) == []
    good = layout.found(run)
    assert f"{good[-1]} is the last good" in said if good else "there is no checkpoint" in said
    # As the message says.
    assert f"resume {run} optim.lr=0.001 --allow" in said
    healed = own_config(run, ["optim.lr=0.001", "optim.weight_decay=0"], allow_changes=True)
    train(healed, two_tasks, run, RankContext(), allow_changes=True, until=1)
    assert "t01-s000000" in [path.name for path in layout.found(run)]
    assert not_finite(run) == []


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_loss(tmp_path, two_tasks, configs, ranks):
    arguments = [*TINY, "checkpoint.every_steps=2", "optim.lr=1e30"]
    said = ranks(diverge, 2, str(configs / "digits.yaml"), arguments, str(two_tasks.root), tmp_path)
    assert len(set(said)) == 1
    assert "is not finite at step 2 of task 1/2" in said[0]
    assert not_finite(tmp_path / "run") == []


def diverge(config: str, overrides: list[str], stream: str, folder: Path) -> str:
    given = load(Path(config), overrides)
    with start(given.parallel, threads=1) as context:
        try:
            train(given, Stream.open(stream), folder / "run", context)
        except KaizenError as error:
            return str(error)
    return "trained on"


# ---- what is refused --------------------------------------------------------------------

CHANGES = [
    ("classifier.hidden", ["classifier.hidden=128"]),
    ("model.backbone", ["model.backbone=resnet14"]),
    ("ssl.hidden", ["ssl.hidden=32", "optim.lr=0.0005"]),
    ("classifier.logit_adjustment", ["classifier.logit_adjustment=1.0"]),
    ("eval.ema", ["eval.ema=0.9"]),
    ("eval.ncm", ["eval.ncm=true"]),
    ("optim.name", ["optim.name=sgd"]),
    ("train.batch_size", ["train.batch_size=1", "train.lanes=1"]),
    ("views.backend", ["views.backend=dali"]),
]


@pytest.mark.parametrize(("key", "changes"), CHANGES, ids=[key for key, _ in CHANGES])
def test_a_refused_change_names_its_key_and_writes_nothing(
    begun, two_tasks, monkeypatch, key, changes
):
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    before = contents(begun)
    with pytest.raises(UsageError, match=key) as caught:
        go_on(begun, two_tasks, *changes)
    assert "optim.lr" not in str(caught.value)
    assert contents(begun) == before


def test_after_a_refusal_the_run_goes_on(begun, two_tasks, tiny):
    for changes in (["method=mocov2plus"], ["classifier.hidden=128"]):
        with pytest.raises(UsageError):
            go_on(begun, two_tasks, *changes)
    # As the first command again.
    assert train(load(begun / "config.yaml"), two_tasks, begun, RankContext()).finished


def test_what_asks_for_no_new_tensors_can_be_changed(begun, two_tasks):
    """Weights and rates, and switching terms off."""
    changes = ["optim.lr=0.0005", "distill.classifier=false", "distill.features=false"]
    changes += ["ssl_weight=0.5", "train.batch_size=8", "eval.forward_transfer=true"]
    assert go_on(begun, two_tasks, *changes).finished
    rows = [json.loads(line) for line in (begun / "events.jsonl").read_text().splitlines()]
    assert [(r["task"], r["step"]) for r in rows] == [(0, 0), (0, 3), (1, 0), (1, 3)]


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("train.batch_size", ["train.batch_size=1", "train.lanes=1"]),
        ("train.batch_size", ["train.batch_size=8", "train.accumulate=8"]),
        ("distill.fraction", ["distill.fraction=0.01", "train.lanes=1", "replay.fraction=0"]),
    ],
)
def test_batch_statistics_of_one_image_are_refused_at_once(tmp_path, tiny, two_tasks, key, given):
    with pytest.raises(UsageError, match=f"{key}: leaves BatchNorm with one image"):
        train(tiny(*given), two_tasks, tmp_path / "run", RankContext())
    assert not (tmp_path / "run").exists()


def test_a_backend_that_is_not_here_is_refused_before_anything_is_made(
    tmp_path, tiny, two_tasks, monkeypatch
):
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"views\.backend"):
        train(tiny("views.backend=dali"), two_tasks, tmp_path / "run", RankContext())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["checkpoints", "replay", "models", "tensorboard"])
def test_links_in_place_of_a_runs_own_folders_are_refused(begun, two_tasks, tmp_path, name):
    """Else an old checkpoint of another run, say, would be removed as one of this."""
    (begun / name).rename(tmp_path / "theirs")
    (begun / name).symlink_to(tmp_path / "theirs")
    before = contents(tmp_path / "theirs")
    with pytest.raises(UsageError, match=f"{name} is a link"):
        go_on(begun, two_tasks)
    assert contents(tmp_path / "theirs") == before


def test_a_link_in_place_of_an_unfinished_replay_store_is_not_followed(tmp_path, tiny, two_tasks):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    run = tmp_path / "run"
    (run / "replay").mkdir(parents=True)
    given = tiny("train.max_steps=1")
    (run / "config.yaml").write_text(given.to_yaml())
    (run / "replay" / ".task-00.tmp").symlink_to(theirs)
    train(given, two_tasks, run, RankContext(), until=1)
    assert list(theirs.iterdir()) == []
    assert not (run / "replay" / "task-00").is_symlink()


# ---- where the stream lies, and who makes the views ---------------------------------------


def test_a_moved_stream_is_asked_for_and_kept_in_mind(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stream = prepare("digits", Path("old"), tasks=2, progress=False)
    run = tmp_path / "run"
    train(tiny("train.max_steps=1"), stream, run, RankContext(), until=1)
    # Also from another folder.
    assert own_stream(run) == str(tmp_path / "old")
    assert f"--stream {tmp_path / 'old'}" in (run / "config.yaml").read_text()
    Path("old").rename("new")
    with pytest.raises(DataError, match=f"lay at {tmp_path / 'old'}.*--stream"):
        own_stream(run)
    with pytest.raises(DataError, match="--stream"):
        evaluate(run, None, "knn")
    assert go_on(run, Stream.open("new")).finished
    assert own_stream(run) == str(tmp_path / "new")


def test_who_made_the_views_is_recorded_and_a_change_is_said(begun, two_tasks, capsys):
    path = begun / "results.json"
    assert json.loads(path.read_text())["views_backend"] == "torch"
    for saved in layout.found(begun):
        document = json.loads((saved / "state.json").read_text())
        document["results"]["views_backend"] = "dali"
        sign(saved, json.dumps(document).encode())
    go_on(begun, two_tasks)
    assert "views.backend: dali made the views so far, torch makes" in capsys.readouterr().err


def test_auto_is_decided_once_for_all_ranks(ranks):
    """Rank 1 lacks what rank 0 has, and the other way round."""
    both = [f"rank {r}: views.backend: NVIDIA DALI is not installed for rank 1" for r in (0, 1)]
    found = ranks(decide, 2, "auto", [True, False])
    assert [text[: len(both[0])] for text in found] == both
    assert ranks(decide, 2, "auto", [False, True]) == ["torch", "torch"]


def decide(name: str, installed: list[bool]) -> str:
    with start(ParallelConfig(), threads=1) as context:
        choose.find_spec = lambda _: installed[context.rank] or None
        try:
            return choose.agreed(name, context.exchange)
        except UsageError as error:
            return f"rank {context.rank}: {error}"


# ---- nothing to do ------------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is(begun, two_tasks):
    go_on(begun, two_tasks)
    before = contents(begun)
    for changes in ([], ["optim.lr=0.5"], ["log.every_steps=7"]):
        assert go_on(begun, two_tasks, *changes).finished
    train(own_config(begun, [], False), two_tasks, begun, RankContext(), until=1)
    assert contents(begun) == before


def test_results_that_a_kill_has_kept_from_being_written_are_made_up_for(begun, two_tasks):
    go_on(begun, two_tasks)
    path = begun / "results.json"
    whole = path.read_bytes()
    half = Results.model_validate(json.loads(whole))
    half.accuracy, half.knn, half.finished = half.accuracy[:1], half.knn[:1], False
    half.write(begun)
    go_on(begun, two_tasks)
    assert path.read_bytes() == whole


# ---- damaged states -----------------------------------------------------------------------


def sign(saved: Path, data: bytes) -> None:
    """Put a state into a checkpoint whose manifest agrees with it."""
    (saved / "state.json").write_bytes(data)
    files = layout.entries(saved)
    manifest = layout.CheckpointManifest(version=1, files=files)
    (saved / "manifest.json").write_text(manifest.model_dump_json())


def test_500_mutations_of_a_state(begun):
    """Each is an error, also where the manifest agrees with it, or means what the document says;
    what its results leave out was not measured."""
    newest = layout.found(begun)[-1]
    file = newest / "state.json"
    for what, data in mutations(file.read_bytes(), CASES):
        file.write_bytes(data)
        taken = survive(lambda: resume.read_state(newest))
        if isinstance(taken, KaizenError):
            continue
        said, document = taken.model_dump(mode="json"), json.loads(data)
        assert said["cursor"] == document["cursor"], what
        assert said["replay"] == document["replay"], what
        for key, value in document["results"].items():
            assert said["results"][key] == value, what


@pytest.mark.parametrize("damaged", ["state.json", "manifest.json"])
def test_a_damaged_document_is_a_fault_of_its_checkpoint(begun, two_tasks, capsys, damaged):
    """The one before is used; of the state also where the manifest agrees with it."""
    newest = layout.found(begun)[-1]
    if damaged == "state.json":
        sign(newest, (newest / damaged).read_bytes().replace(b'"images": ', b'"images": -'))
    else:
        (newest / damaged).write_text('{"version": 1, "files": {"state.json": {"bytes": 1}}}')
    assert go_on(begun, two_tasks).finished
    said = capsys.readouterr().err
    assert f"WARNING: {newest.name} is not used" in said
    assert "step 0 of task 2/2" in said
