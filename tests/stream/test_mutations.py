"""Damaged shards: always a named error or a counted replacement, in every reader there is.

What an image with other bytes that still decode makes of a batch, training cannot know; that
`verify` names its shard, by the sha256 in stream.json, is tested for every case.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import mutations
import pytest

from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.stream.verify import verify
from kaizen_dist.views import eval_view

QUICK = 24
SOME = [QUICK, pytest.param(mutations.CASES, marks=pytest.mark.slow)]
BACKENDS = ["torch", "dali"] if find_spec("nvidia") and find_spec("nvidia.dali") else ["torch"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Stream:
    return mutations.make_stream(tmp_path_factory.mktemp("whole"))


def program(*arguments: object, code: int = 0, timeout: float = 280) -> subprocess.CompletedProcess:
    """A Python program, which must neither hang nor end by a signal."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
    assert done.returncode == code, done.stdout[-300:] + done.stderr[-3000:]
    return done


@pytest.mark.parametrize("cases", SOME)
def test_verify_names_the_file_of_every_damage(whole, tmp_path, cases):
    assert verify(whole.root, decode=True, progress=False).problems == []
    for number in range(cases):
        case = mutations.make_case(number, whole, tmp_path)
        for decode in (False, True):
            problems = verify(case.root, decode=decode, progress=False).problems
            assert problems, case
            assert all(str(case.shard) in problem for problem in problems), problems


@pytest.mark.parametrize("cases", SOME)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loader_meets_no_damage_without_a_name(whole, tmp_path, backend, cases):
    done = program(mutations.__file__, "loader", whole.root, tmp_path, backend, cases)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [int(number) for number, _, _ in lines] == list(range(cases))
    found = Counter((kind, outcome) for _, kind, outcome in lines)
    outcomes = {kind: {o for k, o in found if k == kind} for kind, _ in found}
    assert outcomes["truncated"] == {"error"}
    # Labels come from the index; a header in the tar is not on the way to an image's bytes.
    assert outcomes["wrong_label"] == outcomes["bits_in_a_tar_header"] == {"same"}
    assert "replaced" in outcomes["bits_in_an_image_header"] & outcomes["absurd_header"]


@pytest.mark.skipif("dali" not in BACKENDS, reason="DALI is not installed")
@pytest.mark.parametrize("cases", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_the_backends_agree_on_what_is_bad_and_none_kills_the_process(whole, cases):
    done = program(mutations.__file__, "images", whole.root, cases)
    verdicts = [line.split() for line in done.stdout.splitlines()]
    assert len(verdicts) == cases
    assert [n for n, by_pillow, by_dali in verdicts if by_pillow != by_dali] == []
    assert {by_pillow for _, by_pillow, _ in verdicts} == {"good", "bad"}


def test_prepare_leaves_out_and_lists_what_does_not_decode(whole, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(whole.root.parent / "source", source)
    chance = mutations.random.Random(1)
    damaged = chance.sample(sorted(path for path in source.rglob("*.*") if path.is_file()), 40)
    for path in damaged:
        path.write_bytes(mutations.damaged_image(chance, path.read_bytes()))
    options = {"tasks": 2, "progress": False}
    with pytest.raises(DataError, match="do not decode") as caught:
        prepare(f"folder:{source}", tmp_path / "refused", **options)
    named = [path for path in damaged if str(path.relative_to(source)) in str(caught.value)]
    assert named
    stream = prepare(f"folder:{source}", tmp_path / "stream", max_bad=1.0, **options)
    assert verify(stream.root, decode=True, progress=False).problems == []
    listed = {bad.name for bad in stream.manifest.bad}
    assert 0 < len(listed) < len(damaged)
    assert listed <= {str(path.relative_to(source)) for path in damaged}
    for task in range(len(stream)):
        for part in ("train", "val"):
            split = stream.split(task, part)
            for row in range(len(split)):
                eval_view.decode(split.read(row))


# ---- real runs ----------------------------------------------------------------------------

SETTINGS = [
    "train.seed=0",
    "train.batch_size=12",
    "train.lanes=2",
    "replay.batch_size=4",
    "replay.fraction=0.1",
    "train.epochs=11",
    "train.max_steps=8",
    "eval.bank=40",
    "train.threads=1",
    "ssl.hidden=32",
    "ssl.predictor_hidden=32",
    "log.every_steps=5",
    "views.size=16",
]


@pytest.fixture
def train(configs, tmp_path):
    def run(stream: Path, *settings: str, code: int = 0, name: str = "run", procs: int = 1):
        arguments = ["train", configs / "digits.yaml", "--stream", stream, "--out", tmp_path / name]
        arguments += ["--procs", procs, *SETTINGS, *settings]
        return program("-m", "kaizen_dist", *arguments, code=code), tmp_path / name

    return run


def damage_images(whole: Stream, root: Path, rows: list[int]) -> list[str]:
    """Zeroes out some images of the first task; where they are."""
    shutil.copytree(whole.root, root)
    split = Stream.open(root).split(0, "train")
    for row in rows:
        entry = split.index[row]
        with split.shards[0].open("r+b") as file:
            file.seek(int(entry["offset"]))
            file.write(bytes(int(entry["length"])))
    return [split.where(row) for row in rows]


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_gets_by_with_few_bad_images_and_says_so(whole, tmp_path, train):
    """Through training, evaluation and the choice of what is kept for replay."""
    places = damage_images(whole, tmp_path / "damaged", [3, 30, 31])
    verified = program("-m", "kaizen_dist", "verify", tmp_path / "damaged", "--decode", code=3)
    done, run = train(tmp_path / "damaged", "views.max_bad=0.07")
    for place in places:
        assert place in verified.stderr
        assert len(re.findall(f"WARNING: {place} does not decode", done.stderr)) == 1
    rows = events(run)
    # 48 images in 4 steps of 12: all of them in each of two epochs.
    assert sum(row["replaced"] for row in rows if row["task"] == 0) == 3 * 2
    assert sum(row["replaced"] for row in rows if row["task"] == 1) == 0
    assert json.loads((run / "results.json").read_text())["finished"]
    assert verify_replay(run)


def verify_replay(run: Path) -> bool:
    """Whether all that was kept decodes."""
    from kaizen_dist.stream.replay import ReplayStore

    split = ReplayStore(run).split(0)
    return all(eval_view.decode(split.read(row)) for row in range(len(split)))


def test_too_many_bad_images_end_a_run_with_their_names(whole, tmp_path, train):
    places = damage_images(whole, tmp_path / "damaged", [3, 30])
    done, _ = train(tmp_path / "damaged", "eval.forward_transfer=false", code=3)
    assert "views.max_bad=0.001" in done.stderr
    assert any(f"{place} does not decode" in done.stderr for place in places)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_is_replaced_does_not_depend_on_the_ranks(whole, tmp_path, train):
    first = Order(0, 0, 48, 12, 2).picks(0, 0).row
    damage_images(whole, tmp_path / "damaged", first[[1, 2, 8]].tolist())
    settings = ("views.max_bad=0.07", "eval.knn=false", "eval.forward_transfer=false")
    _, alone = train(tmp_path / "damaged", *settings, name="alone")
    done, pair = train(tmp_path / "damaged", *settings, name="pair", procs=2)
    assert "WARNING: rank 1: " in done.stderr
    ours, theirs = events(pair), events(alone)
    assert [row["replaced"] for row in ours] == [row["replaced"] for row in theirs]
    # All three are in the first step; later ones drift apart by rounding.
    assert ours[0]["replaced"] == 3
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], abs=1e-4)
    # More than may be, over both ranks together, though not on any one of them.
    refused, _ = train(tmp_path / "damaged", "views.max_bad=0.05", code=3, name="no", procs=2)
    assert "3 of 48 training images do not decode" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", range(0, 8 * 3 + 8, 3))
def test_a_run_on_a_damaged_shard_ends_well_or_with_a_name(whole, tmp_path, train, number):
    case = mutations.make_case(number, whole, tmp_path)
    arguments = (case.root, "views.max_bad=0.1")
    try:
        train(*arguments)
    except AssertionError:
        done, _ = train(*arguments, code=3, name="again")
        assert str(case.shard) in done.stderr
        assert "Traceback" not in done.stderr
