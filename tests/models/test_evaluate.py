"""A run examined after the fact: what its own evaluation said, and on other streams."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from loopback import serving
from PIL import Image
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import load
from kaizen_dist.models.evaluate import evaluate
from kaizen_dist.runs.checks import read_results
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare

QUICK = [
    "train.max_steps=6",
    "train.threads=1",
    "model.backbone=tiny_backbone:Tiny",
    "ssl={hidden: 32, dim: 16, predictor_hidden: 32}",
    "eval.forward_transfer=false",
    "views.backend=torch",
]


@pytest.fixture(scope="module")
def run(shared_folder, configs) -> Path:
    """A finished run on two tasks of five digits."""
    stream = prepare("digits", shared_folder / "two", tasks=2, progress=False)
    run = shared_folder / "run"
    arguments = ["train", configs / "digits.yaml", "--stream", stream.root, "--out", run]
    CliRunner().invoke(app, [*map(str, arguments), *QUICK], catch_exceptions=False)
    return run


def test_on_its_own_stream_it_knows_what_the_run_measured(run):
    results = read_results(run)
    for task, asked in ((0, [0]), (None, [0, 1])):
        row = -1 if task is None else task
        classifier = evaluate(run, task, "classifier")
        assert classifier.own_stream
        assert list(classifier.tasks) == asked
        for t in asked:
            assert classifier.tasks[t] == pytest.approx(results.accuracy[row][t])
            knn = evaluate(run, task, "knn")
            assert knn.tasks[t] == pytest.approx(results.knn[row][t])
            assert knn.ece is None
    assert classifier.accuracy == pytest.approx(results.final_accuracy_weighted)
    assert 0 <= classifier.ece <= 1
    counts = np.array(classifier.confusion)
    assert counts.sum() == classifier.images == sum(results.stream.val_counts)
    assert counts.trace() / counts.sum() == pytest.approx(classifier.accuracy)


def test_features_drift_from_those_of_earlier_tasks(run):
    drift = evaluate(run, 1, "linear").drift
    assert list(drift) == [0]
    assert list(drift[0]) == [0, 1]
    assert all(0.1 < cka < 0.9999 for cka in drift[0].values())
    assert evaluate(run, 0, "linear").drift == {}


def test_on_another_cut_of_the_same_images_classes_are_known_by_name(run, tmp_path):
    """One task, another order of classes: the same images, and the same answers."""
    own = Stream.open(read_results(run).stream.path)
    for task in range(len(own)):
        for part in ("train", "val"):
            split = own.split(task, part)
            for row, (id, label) in enumerate(zip(split.ids, split.labels, strict=True)):
                path = tmp_path / "images" / part / own.classes[label] / f"{id}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(split.read(row))
    prepare(f"folder:{tmp_path / 'images'}", tmp_path / "one", tasks=1, progress=False)
    ours, theirs = (
        evaluate(run, None, "classifier"),
        evaluate(run, None, "classifier", tmp_path / "one"),
    )
    assert not theirs.own_stream
    assert theirs.accuracy == pytest.approx(ours.accuracy)
    by_name = [dict(zip(found.classes, found.per_class, strict=True)) for found in (ours, theirs)]
    assert by_name[0] == pytest.approx(by_name[1])


def test_a_stream_of_other_classes_needs_a_probe(run, tmp_path):
    draw = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 6)):
        for name, level in (("dark", 40), ("light", 200)):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(level + draw.normal(0, 10, (12, 12, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    source = f"folder:{tmp_path / 'images'}"
    prepare(source, tmp_path / "other", tasks=2, progress=False)
    with pytest.raises(UsageError, match="use linear or knn"):
        evaluate(run, None, "classifier", tmp_path / "other")
    found = evaluate(run, None, "linear", tmp_path / "other")
    assert found.accuracy == 1.0
    assert sorted(found.classes) == ["dark", "light"]


def test_the_verb_prints_tables_or_json(run):
    arguments = ["eval", str(run), "--task", "0", "--probe", "linear"]
    said = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert "calibration error" in said
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["probe"] == "linear"
    assert found["task"] == 0
    assert len(found["confusion"]) == len(found["classes"])
    assert "visualisation" not in found


def test_examples_are_images_of_the_stream_and_what_they_were_taken_for(run, tmp_path):
    arguments = ["eval", str(run), "--page", str(tmp_path / "eval.html")]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "eval.html").stat().st_size > 10_000
    found = evaluate(run, None, "classifier")
    shown, counts = found.visualisation, np.array(found.confusion)
    assert len(shown.points) == len(shown.tasks) == found.images
    assert len(shown.wrong) == len(shown.right) == 12
    place = {name: i for i, name in enumerate(found.classes)}
    for example in [*shown.right, *shown.wrong]:
        assert counts[place[example.label], place[example.answer]] > 0
        with Image.open(io.BytesIO(example.image)) as image:
            assert image.size == (8, 8)
    assert all(example.label == example.answer for example in shown.right)
    assert all(example.label != example.answer for example in shown.wrong)


def test_a_task_that_is_not_finished_and_a_probe_that_there_is_not(run):
    with pytest.raises(UsageError, match="tasks 0 to 1"):
        evaluate(run, 5, "knn")
    with pytest.raises(UsageError, match="linear, knn, classifier"):
        CliRunner().invoke(app, ["eval", str(run), "--probe", "svm"], catch_exceptions=False)


def test_the_places_that_somebody_elses_run_names_are_left_alone(run, tmp_path, monkeypatch):
    """Its cache folder, behind which lie files of the reader's, and its stream's URL."""
    theirs, cache = tmp_path / "theirs", tmp_path / "cache"
    shutil.copytree(run, theirs)
    mine = tmp_path / "mine/task-00/train-000000.tar"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(bytes(1000))
    cache.mkdir()
    (cache / ("a" * 64)).symlink_to(tmp_path / "mine")
    text = (theirs / "config.yaml").read_text()
    text = text.replace("cache_dir: null", f"cache_dir: {cache}")
    text = text.replace("cache_gb: 50.0", "cache_gb: 0.0001")
    (theirs / "config.yaml").write_text(text)
    assert load(theirs / "config.yaml").stream.cache_dir == str(cache)
    evaluate(theirs, None, "classifier")
    assert [path.name for path in cache.iterdir()] == ["a" * 64]
    assert mine.read_bytes() == bytes(1000)

    results = json.loads((theirs / "results.json").read_text())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with serving(Path(results["stream"]["path"])) as server:
        results["stream"]["path"] = server.url
        (theirs / "results.json").write_text(json.dumps(results))
        with pytest.raises(UsageError, match=r"nothing is fetched unasked; .*--stream"):
            evaluate(theirs, None, "classifier")
        assert server.asked == []
        assert evaluate(theirs, None, "classifier", server.url).own_stream
    assert [path.name for path in cache.iterdir()] == ["a" * 64]
    assert any((tmp_path / "xdg/kaizen_dist").glob("*/*/*.tar"))
