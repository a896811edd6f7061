"""The models kept beside a run: the student alone, the same bytes each time."""

import json

import pytest
import torch
from safetensors import safe_open

from kaizen_dist.common.errors import DataError, WriteError
from kaizen_dist.runs.saved_models import model_path, read_model, write_model
from kaizen_dist.training import trainer

STATE = {
    "backbone.network.weight": torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,
    "backbone.network.num_batches_tracked": torch.tensor(3),
    "classifier.0.bias": torch.ones(2, dtype=torch.bfloat16),
    "teacher.backbone.network.weight": torch.zeros(1),
    "method.projector.0.weight": torch.zeros(1),
}


def test_only_the_student_is_kept_in_float32(stream, tmp_path):
    path = write_model(tmp_path, 0, STATE, stream, 10)
    assert path == tmp_path / "models" / "task-00.safetensors"
    saved = read_model(tmp_path, 0)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in saved.state.items()} == {
        "backbone.network.weight": (torch.float32, (3, 2)),
        "backbone.network.num_batches_tracked": (torch.int64, ()),
        "classifier.0.bias": (torch.float32, (2,)),
    }
    assert saved.state["backbone.network.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert saved.classes == tuple(stream.classes)
    assert saved.seen == tuple(sorted(stream.tasks[0].classes))


def test_the_header_says_version_and_task(stream, tmp_path):
    with safe_open(write_model(tmp_path, 1, STATE, stream, 10), framework="pt") as file:
        header = json.loads(file.metadata()["kaizen_dist"])
    assert (header["format_version"], header["task"]) == (1, 1)
    assert header["seen"] == list(range(10))


def test_the_same_state_gives_the_same_bytes(stream, tmp_path):
    # Headers of several keys come in a random order: ten times the same is no luck.
    written = {write_model(tmp_path, 0, STATE, stream, 10).read_bytes() for _ in range(10)}
    assert len(written) == 1
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_another_version_is_refused(stream, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("kaizen_dist.runs.saved_models.FORMAT_VERSION", 2)
        write_model(tmp_path, 0, STATE, stream, 10)
    with pytest.raises(DataError, match=r"task-00\.safetensors: format version 2"):
        read_model(tmp_path, 0)


def test_a_folder_that_cannot_be_written_is_named(stream, tmp_path):
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(WriteError, match="models"):
        write_model(tmp_path, 0, STATE, stream, 10)


def test_every_task_of_a_run_leaves_its_model(trained):
    run = trained("cifar")
    assert len(run.states) == 2
    for task, state in enumerate(run.states):
        saved = read_model(run.path, task)
        ours = {n: t for n, t in state.items() if n.startswith(("backbone.", "classifier."))}
        assert saved.state.keys() == ours.keys()
        assert all(torch.equal(saved.state[name], tensor) for name, tensor in ours.items())


def test_killed_before_its_checkpoint_a_task_ends_with_the_same_model(train, tmp_path, monkeypatch):
    run = tmp_path / "run"
    settings = ["model.backbone=resnet10", "eval.knn=false"]
    save = trainer.Trainer.save

    def killed(self):
        if self.cursor.task == 2:
            raise KeyboardInterrupt
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "save", killed)
        train(run, *settings)
    path = model_path(run, 1)
    before = path.read_bytes()
    path.unlink()
    train(run, *settings)
    assert path.read_bytes() == before
