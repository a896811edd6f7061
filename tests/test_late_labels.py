"""Labels that come later, in training: what a task has learnt stays what it was, and what begins
after them knows them as if they had been there from the start."""

import csv
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from killing import MOMENTS, Setting, outcome, run_ranks

from kaizen_dist.models.evaluate import evaluate
from kaizen_dist.models.export import export
from kaizen_dist.models.network import load_model
from kaizen_dist.runs.saved_models import read_model
from kaizen_dist.stream.add_labels import label, list_images
from kaizen_dist.stream.index import write_index
from kaizen_dist.stream.manifest import Stream, load_manifest
from kaizen_dist.stream.manifest_schema import StreamManifest
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.stream.replay import ReplayStore

pytestmark = pytest.mark.timeout(900)

GROUPS = [["0", "1"], ["7", "2"], ["3", "9"]]
QUICK = (
    "checkpoint.every_steps=1",
    "classifier.logit_adjustment=1.0",
    "eval.ncm=true",
    "replay.fraction=0.2",
)


@pytest.fixture
def begun(tmp_path) -> Path:
    """The stream with its first task, half of whose training images have no label."""
    folder = tmp_path / "stream"
    groups = GROUPS[:1]
    return prepare("digits", folder, classes_per_task=groups, labels=0.5, progress=False).root


@pytest.fixture(scope="module")
def config(tmp_path_factory, configs) -> Path:
    file = tmp_path_factory.mktemp("config") / "moco.yaml"
    Setting("mocov2plus", "torch", 1).write(file, configs)
    return file


def grow(stream: Path, number: int) -> None:
    extend(stream, "digits", classes=GROUPS[number], progress=False)


def tell(stream: Path, folder: Path, seed: int, new: str | None = None) -> Stream:
    """Give labels: those of other classes to some images, `new` to others, take some away."""
    chance, opened = random.Random(seed), Stream.open(stream)
    images = [image for image in list_images(opened) if image.part == "train"]
    wanted = [*opened.classes, "", *([new] * 2 if new else [])]
    rows = [(image.id, chance.choice(wanted)) for image in chance.sample(images, 60)]
    file = folder / f"labels-{seed}.csv"
    with file.open("w", newline="") as table:
        csv.writer(table).writerows([("id", "label"), *rows])
    return label(stream, file, new_classes=new is not None)


def arguments(config: Path, stream: Path, run: Path, *overrides: str) -> list[str]:
    given = Setting("mocov2plus", "torch", 1).arguments(config, stream, run)
    return [*given, *QUICK, *overrides]


def kaizen(given: list[str], code: int = 0) -> str:
    command = [sys.executable, "-m", "kaizen_dist", *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr


def labelled_from_the_start(late: Stream, folder: Path) -> Path:
    """The same images in the same order, with the present labels in the indices themselves."""
    folder.mkdir()
    manifest, tasks = late.manifest, []
    for number, info in enumerate(late.tasks):
        (folder / info.folder).mkdir()
        for file in (late.root / info.folder).iterdir():
            (folder / info.folder / file.name).write_bytes(file.read_bytes())
        digests = {
            part: write_index(folder / info.folder, part, late.split(number, part).index)
            for part in ("train", "val")
        }
        new = late.classes[: 2 * len(late) + 1] if number == 0 else []
        tasks.append(info.model_copy(update={"index_sha256": digests, "new_classes": new}))
    whole = StreamManifest.of(manifest.additions, tasks)
    (folder / "stream.json").write_bytes(whole.written())
    return folder


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_begins_later_knows_them_from_the_start(tmp_path, config, begun, world):
    """Against a stream whose indices have the labels; of its classes one has no number by then."""
    grow(begun, 1)
    tell(begun, tmp_path, 1)
    late = tell(begun, tmp_path, 2, new="lynx")
    outcomes = []
    for name, stream in (
        ("late", begun),
        ("whole", labelled_from_the_start(late, tmp_path / "whole")),
    ):
        run = tmp_path / f"run-{name}"
        kaizen(arguments(config, stream, run, "--procs", str(world), "--no-summary"))
        outcomes.append(outcome(run))
        assert json.loads((run / "results.json").read_text())["late_labels"] == (
            [2, 2] if name == "late" else [0, 0]
        )
    late_run, whole_run = outcomes
    late_run.pop("models"), whole_run.pop("models")
    assert late_run == whole_run


def test_what_a_task_learns_stays_what_it_was_when_it_began(tmp_path, config, begun):
    """Labels come while the second task is learnt, by a run that is killed there; against one whose
    second task was finished before."""
    grow(begun, 1)
    runs = tmp_path / "before", tmp_path / "within"
    kaizen(arguments(config, begun, runs[0], "--until", "2"))
    # In the last step of the second task.
    moment = f"{MOMENTS['in a step'][0]} after 8"
    assert run_ranks(arguments(config, begun, runs[1]), 1, {0: moment}) == [-signal.SIGKILL]
    assert json.loads((runs[1] / "results.json").read_text())["late_labels"] == [0]
    tell(begun, tmp_path, 1, new="lynx")
    assert "nothing to do" in kaizen(arguments(config, begun, runs[0]))
    said = kaizen(arguments(config, begun, runs[1]))
    assert "got labels for images of past tasks" in said
    grow(begun, 2)
    for run in runs:
        kaizen(arguments(config, begun, run))
        assert json.loads((run / "results.json").read_text())["late_labels"] == [0, 0, 1]
    assert outcome(runs[0]) == outcome(runs[1])


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_while_labels_come(tmp_path, config, begun, kills):
    """A run that is killed between labels, against one that is not: both learn each task when it
    has come, by the labels that had come by then."""
    grow(begun, 1)
    chance = random.Random(kills)
    whole, killed = (arguments(config, begun, tmp_path / name) for name in ("whole", "killed"))
    for number in range(3):
        if number == 2:
            grow(begun, 2)
        until = ["--until", str(number + 1)]
        assert run_ranks([*whole, *until], 1, {}) == [0]
        for _ in range(kills // 3 + 1):
            target, calls, _ = MOMENTS[chance.choice(sorted(MOMENTS))]
            moment = f"{target} {chance.choice(['before', 'after'])} {chance.randint(1, calls)}"
            run_ranks([*killed, *until], 1, {0: moment})
        assert run_ranks([*killed, *until], 1, {}) == [0]
        tell(begun, tmp_path, number, new=f"new {number}")
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "killed")


def test_the_next_task_knows_them(tmp_path, config, begun):
    """In replay, class means, the outputs of the classifier, evaluation and an export."""
    run = tmp_path / "run"
    kaizen(arguments(config, begun, run))
    before = Stream.open(begun)
    # Half of one class's images: some of them are kept for replay.
    zeros = [i for i in list_images(before) if i.label != "1" and i.part == "train"]
    file = tmp_path / "lynx.csv"
    file.write_text("id,label\n" + "".join(f"{image.id},lynx\n" for image in zeros))
    late = label(begun, file, new_classes=True)
    kept = ReplayStore(run).split(0)
    (lynx,) = [n for n, name in enumerate(late.classes) if name == "lynx"]
    assert np.count_nonzero(kept.labels == lynx) == 0
    replayed = np.count_nonzero(late.relabelled(kept).labels == lynx)
    assert replayed > 0
    grow(begun, 1)
    kaizen(arguments(config, begun, run))
    saved = read_model(run, 1)
    assert saved.classes == ("0", "1", "lynx", "7", "2")
    assert saved.seen == (0, 1, 2, 3, 4)
    assert saved.state["class_means.bias"][lynx] > -1e8, "made of the replayed images"
    assert read_model(run, 0).classes == ("0", "1")
    assert list(load_model(export(run, 1, tmp_path / "e")).description.classes) == [
        *("0", "1", "lynx", "7", "2")
    ]
    results = json.loads((run / "results.json").read_text())
    assert results["task_classes"] == [["0", "1", "lynx"], ["7", "2"]]
    assert evaluate(run, 1, "knn").own_stream


def test_evaluation_of_a_finished_run_goes_by_the_newest_labels(tmp_path, config, begun):
    run = tmp_path / "run"
    kaizen(arguments(config, begun, run))
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    before = evaluate(run, 0, "classifier")
    val = [image for image in list_images(Stream.open(begun)) if image.part == "val"]
    file = tmp_path / "swapped.csv"
    other = {"0": "1", "1": "0"}
    file.write_text("id,label\n" + "".join(f"{i.id},{other[i.label]}\n" for i in val))
    label(begun, file)
    after = evaluate(run, 0, "classifier")
    assert (after.own_stream, after.images) == (True, before.images)
    assert after.accuracy == pytest.approx(1 - before.accuracy)
    assert "nothing to do" in kaizen(arguments(config, begun, run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files


def test_a_softmax_over_all_classes_takes_no_new_ones(tmp_path, config, begun):
    run = tmp_path / "run"
    over = ("classifier.over=all",)
    kaizen(arguments(config, begun, run, *over))
    tell(begun, tmp_path, 1, new="lynx")
    grow(begun, 1)
    assert "classifier.over=all" in kaizen(arguments(config, begun, run, *over), 2)
    assert load_manifest(begun).classes[2] == "lynx"
