"""Bad samples over ranks: counted together, said once, and no image counted twice."""

import numpy as np
import pytest
import torch

from kaizen_dist.common.errors import DataError
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.context import RankContext, start
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.training.bad_sample_log import BadSampleLog
from kaizen_dist.views.bad_samples import BadSamples
from kaizen_dist.views.loader import Batch


def batch_with(bad_samples: BadSamples, rows: list[tuple[int, int]]) -> Batch:
    nothing = torch.empty(0)
    replaced = tuple(bad_samples[row] for row in rows)
    return Batch(nothing, nothing, np.empty(0, np.int64), 0, replaced)


def ruin(split, rows: list[int]) -> None:
    for row in rows:
        entry = split.index[row]
        with split.shards[int(entry["shard"])].open("r+b") as file:
            file.seek(int(entry["offset"]))
            file.write(bytes(int(entry["length"])))


def test_each_fault_is_said_once_and_counted_until_it_is_reported(digits):
    split = digits.split(0, "train")
    bad_samples, said = BadSamples({0: split}, max_bad=0.1), []
    log = BadSampleLog(RankContext(), said.append)
    log.begin(bad_samples)
    bad_samples.add({(0, 5): "cut short"})
    log.note(batch_with(bad_samples, [(0, 5)]))
    bad_samples.add({(0, 5): "cut short", (0, 9): "no image"})
    log.note(batch_with(bad_samples, [(0, 9), (0, 5)]))
    log.report(bad_samples[(0, 9)])
    assert [sample.warning() for sample in said] == [
        f"{split.where(5)} does not decode (cut short); another takes its place",
        f"{split.where(9)} does not decode (no image); another takes its place",
    ]
    assert [log.replaced(), log.replaced()] == [3, 0]


def on_a_rank(root: str) -> dict:
    """Both ranks meet row 0, and another one each; none meets more than `max_bad` alone."""
    with start(ParallelConfig(), threads=1) as context:
        return meet(context, root)


def meet(context: RankContext, root: str) -> dict:
    split = Stream.open(root).split(0, "train")
    found = {}
    for allowed in (3, 2):
        bad_samples = BadSamples({0: split}, max_bad=allowed / len(split))
        log = BadSampleLog(context, lambda sample: found.setdefault("said", []).append(str(sample)))
        log.begin(bad_samples)
        bad_samples.add({(0, 0): "x", (0, 1 + context.rank): "x"})
        log.note(batch_with(bad_samples, [(0, 0), (0, 1 + context.rank)]))
        try:
            found[allowed] = log.replaced()
        except DataError as error:
            found[allowed] = str(error)
    rows = np.array([3, 10, 11, 12, 40, 41])
    bad = log.undecodable(split, rows, lambda done, total: None)
    return {**found, "bad": bad.tolist(), "rank": context.rank}


def test_ranks_count_together(tmp_path, ranks):
    stream = prepare("digits", tmp_path / "s", progress=False)
    split = stream.split(0, "train")
    ruin(split, [10, 41, 50])
    for answer in ranks(on_a_rank, 2, str(stream.root)):
        assert answer[3] == 4
        assert answer[2].startswith(f"3 of {len(split)} training images do not decode")
        assert split.where(1 + answer["rank"]) in answer[2]
        assert "1 were met by other ranks" in answer[2]
        assert answer["bad"] == [10, 41]
        assert f"{split.where(0)} does not decode" in answer["said"][0]


def test_rows_that_cannot_be_read_are_an_error(tmp_path):
    stream = prepare("digits", tmp_path / "s", progress=False)
    split = stream.split(0, "train")
    split.shards[0].unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar"):
        BadSampleLog(RankContext()).undecodable(split, np.arange(3), lambda done, total: None)
