"""replay.json, which is somebody's word for what the store holds."""

import json

import pytest
from fuzzing import CASES, mutations, survive

from kaizen_dist.common.errors import KaizenError
from kaizen_dist.stream.replay import MANIFEST, ReplayStore

QUICK = 60


def fuzz(digits, tmp_path, count: int) -> None:
    """What is read is what the store holds, or is found out when it is checked."""
    store, split = ReplayStore(tmp_path), digits.split(0, "train")
    rows = [1, 5, 8]
    store.write_shards(0, split, rows, 0, 1)
    store.commit(0, len(rows))
    store.verify(store.manifest([0]))
    path = store.folder(0) / MANIFEST
    data = path.read_bytes()
    for what, damaged in mutations(data, count):
        path.write_bytes(damaged)
        told = survive(lambda: store.manifest([0]))
        if isinstance(told, KaizenError):
            continue
        checked = survive(lambda told=told: store.verify(told))
        if not isinstance(checked, KaizenError):
            assert plain(told) == {"task-00": json.loads(data)}, what


def plain(told) -> dict:
    """A listing as plain data, whatever holds it."""
    return json.loads(json.dumps(told, default=lambda entry: entry.model_dump()))


def test_no_mutation_of_it_is_believed(digits, tmp_path):
    fuzz(digits, tmp_path, QUICK)


@pytest.mark.slow
def test_no_mutation_of_it_is_believed_at_length(digits, tmp_path):
    fuzz(digits, tmp_path, CASES)
