"""Checkpoints: whole or not there, plain data, found in order."""

import pytest
import torch

from kaizen_dist.engine import checkpoint
from kaizen_dist.errors import DataError, WriteError

STATE = {"learner": {"w": torch.arange(6.0).view(2, 3)}, "cursor": {"task": 1}, "results": "{}"}


def test_what_is_saved_comes_back(tmp_path):
    path = checkpoint.save(tmp_path, 1, 400, STATE)
    assert path == tmp_path / "checkpoints" / "t01-s000400"
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["learner"]["w"], STATE["learner"]["w"])
    assert loaded["cursor"] == {"task": 1}


def test_the_newest_is_kept_and_what_is_unfinished_does_not_count(tmp_path):
    checkpoint.save(tmp_path, 1, 400, STATE)
    checkpoint.save(tmp_path, 2, 0, STATE)
    (tmp_path / "checkpoints" / ".t03-s000000.tmp").mkdir()
    assert [p.name for p in checkpoint.found(tmp_path)] == ["t02-s000000"]
    assert checkpoint.found(tmp_path / "none") == []


def test_a_broken_file_is_named(tmp_path):
    path = checkpoint.save(tmp_path, 0, 7, STATE)
    file = path / "state.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"state\.pt is not a whole checkpoint"):
        checkpoint.load(path)


def test_a_folder_that_cannot_be_written_is_a_write_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(WriteError, match="t00-s000007"):
        checkpoint.save(tmp_path, 0, 7, STATE)


def test_the_digest_is_of_every_tensor_in_any_order():
    state = {"a": torch.ones(3), "b": torch.tensor(5), "c": torch.zeros(0)}
    digest = checkpoint.digest(state)
    assert digest == checkpoint.digest(dict(reversed(state.items())))
    assert digest != checkpoint.digest(state | {"a": torch.ones(3).double()})
    assert digest != checkpoint.digest(state | {"a": torch.ones(3, 1)})
    changed = torch.ones(3)
    changed[2] = 1 + 1e-7
    assert digest != checkpoint.digest(state | {"a": changed})
