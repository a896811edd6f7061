"""A checkpoint's index is data: no code in it runs, whatever it calls itself."""

import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from kaizen_dist.common.errors import DataError
from kaizen_dist.engine.checkpoint.reader import INDEX, TensorReader

TENSORS = {
    "learner.weight": torch.arange(6.0).reshape(2, 3),
    "learner.half": torch.ones(2, dtype=torch.bfloat16),
    "optimizer.weight.step": torch.tensor(7.0),
    "scaler": torch.arange(5, dtype=torch.uint8),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    writer = dcp.FileSystemWriter(tmp_path / "saved", single_file_per_rank=True)
    dcp.save(dict(TENSORS), storage_writer=writer, no_dist=True)
    return tmp_path / "saved"


def load(folder: Path) -> dict[str, torch.Tensor]:
    wanted = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    reader = TensorReader(folder)
    reader.read_metadata()
    dcp.load(wanted, storage_reader=reader, no_dist=True)
    return wanted


def change(folder: Path, change) -> None:
    metadata = pickle.loads((folder / INDEX).read_bytes())
    change(metadata)
    (folder / INDEX).write_bytes(pickle.dumps(metadata))


def test_tensors_come_back(folder):
    loaded = load(folder)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


class Runs:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def test_no_code_in_the_index_runs(folder, tmp_path):
    canary = tmp_path / "canary"
    change(folder, lambda metadata: setattr(metadata, "planner_data", Runs(canary)))
    # DCP's own reader runs it, so the index does what it is made to do.
    dcp.FileSystemReader(folder).read_metadata()
    assert canary.exists()
    canary.unlink()
    with pytest.raises(DataError, match="has no place in it"):
        load(folder)
    assert not canary.exists()


def test_an_entry_of_bytes_which_would_be_unpickled_is_refused(folder):
    def as_bytes(metadata) -> None:
        metadata.state_dict_metadata["scaler"] = BytesStorageMetadata()

    change(folder, as_bytes)
    with pytest.raises(DataError, match=r"BytesStorageMetadata has no place"):
        load(folder)


@pytest.mark.parametrize("place", ["../outside", "/etc/passwd", ".."])
def test_files_elsewhere_are_not_read(folder, place):
    def elsewhere(metadata) -> None:
        next(iter(metadata.storage_data.values())).relative_path = place

    change(folder, elsewhere)
    with pytest.raises(DataError, match="lies elsewhere"):
        load(folder)


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps([1]), pickle.dumps(print)])
def test_what_is_no_index_is_named(folder, data):
    (folder / INDEX).write_bytes(data)
    with pytest.raises(DataError, match=r"\.metadata: not an index of tensors"):
        load(folder)
