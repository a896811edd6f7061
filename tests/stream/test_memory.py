"""An image takes under 100 bytes: listed, planned, shared out, and looked for in a stream."""

import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kaizen_dist.stream.add_tasks import _finish_task
from kaizen_dist.stream.files.class_folders import read_class_folders
from kaizen_dist.stream.files.file_tree import FileTree
from kaizen_dist.stream.files.name_list import NameList
from kaizen_dist.stream.index import INDEX, decode_index, encode_index, index_name
from kaizen_dist.stream.manifest_entries import PARTS, Settings
from kaizen_dist.stream.names import _Digests
from kaizen_dist.stream.scenario import plan
from kaizen_dist.stream.shard_jobs import ShardResult, WrittenShards, shard_jobs, task_folder
from kaizen_dist.stream.shards import ShardInfo, shard_name
from kaizen_dist.stream.sources.images import read_images

CLASSES, EACH = 120, 1250
COUNT = CLASSES * EACH


def names():
    for label in range(CLASSES):
        for n in range(EACH):
            yield f"n{label:08d}/n{label:08d}_{n * 7919 % 10007}.JPEG"


def listed() -> FileTree:
    folders = {f"n{label:08d}" for label in range(CLASSES)}
    sizes = np.full(COUNT, 1000, np.int32)
    return FileTree(Path("/data"), NameList(names()), folders, sizes, None, {}, {}, frozenset())


def peak(work: Callable[[], object]) -> float:
    """The most bytes an image that `work` holds at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / COUNT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [read_class_folders, read_images])
@pytest.mark.parametrize("tasks", [1, 10])
def test_a_folder_is_listed_planned_and_shared_out(read, tasks):
    settings = Settings(source="s", scenario="class", tasks_wanted=tasks, labels=0.5)

    def work():
        source = read("s", listed())
        source.fingerprint()
        jobs = shard_jobs(Path("/out"), source, plan(source, settings), settings, 0)
        assert sum(len(job.images) for job in jobs) == COUNT

    assert peak(work) < 100


def test_a_worker_process_gets_the_names_of_its_shard_only():
    source = read_class_folders("s", listed())
    settings = Settings(source="s", scenario="class", tasks_wanted=2)
    job = shard_jobs(Path("/out"), source, plan(source, settings), settings, 0)[3]
    sent = pickle.dumps(job)
    assert len(sent) < 100 * len(job.images)
    own, numbers = pickle.loads(sent).own, job.images.source
    assert [own.name_of(i) for i in range(len(numbers))] == [source.name_of(i) for i in numbers]


def test_what_a_stream_has_is_compared_with_what_a_source_has():
    def work():
        digests = _Digests()
        digests.add(names())
        assert digests.have(names()).all()
        assert digests.have(["x", "n00000000/n00000000_0.JPEG", ""]).tolist() == [
            False,
            True,
            False,
        ]

    assert peak(work) < 50


def test_indices_and_names_are_written_shard_by_shard(tmp_path):
    source = read_class_folders("s", listed())
    settings = Settings(source="s", scenario="class", tasks_wanted=1)
    planned = plan(source, settings)
    finished = []
    for job in shard_jobs(tmp_path, source, planned, settings, 0):
        job.folder.mkdir(exist_ok=True)
        job.note("npy").parent.mkdir(exist_ok=True)
        rows = np.zeros(len(job.images), INDEX)
        rows["id"] = job.images.ids
        job.note("npy").write_bytes(encode_index(rows))
        name = shard_name(job.part, job.number)
        info = ShardInfo(name=name, samples=len(rows), bytes=1024, sha256="0" * 64)
        finished.append((job, ShardResult(info, [])))
    shards, folder = WrittenShards(finished), task_folder(tmp_path, 0)
    assert peak(lambda: _finish_task(source, planned[0], folder, shards)) < 40
    for part, chosen in zip(PARTS, (planned[0].train, planned[0].val), strict=True):
        written = decode_index((tmp_path / "task-00" / index_name(part)).read_bytes())
        assert np.array_equal(written["id"], chosen.ids)
