"""A stream with replay whose shards a test may damage, and what makes views on this machine."""

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.order import Order
from kaizen_dist.stream.replay import ReplayStore
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.loader import Loader


@dataclass
class Task:
    """Task 1 of the digits, with replay of task 0, in 8 lanes."""

    splits: dict[int, Split]
    order: Order

    def damage(self, task: int, row: int, data: bytes = b"") -> None:
        """Overwrites a row's image, the rest of it with zeros."""
        split = self.splits[task]
        entry = split.index[row]
        with split.shards[int(entry["shard"])].open("r+b") as file:
            file.seek(int(entry["offset"]))
            file.write(data[: int(entry["length"])].ljust(int(entry["length"]), b"\0"))

    def loader(self, lanes=None, **config) -> Loader:
        settings = ViewsConfig(size=8).model_copy(update=config)
        return Loader(self.order, self.splits, settings, lanes)


@pytest.fixture
def task(tmp_path, digits) -> Task:
    store = ReplayStore(tmp_path / "run")
    store.write_shards(0, digits.split(0, "train"), np.arange(0, 200, 9), 0, 1)
    store.commit(0, 23)
    folder = tmp_path / "task"
    shutil.copytree(digits.split(1, "train").folder, folder)
    splits = {0: store.split(0), 1: Split.open(Path(folder), "train")}
    return Task(splits, Order(0, 1, len(splits[1]), 32, 8, (len(splits[0]),), 8))


@pytest.fixture(params=["torch", "dali"])
def backend(request) -> str:
    """The name of every backend there is."""
    there = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
    if request.param == "dali" and not there:
        pytest.skip("DALI is not installed (pip install '.[dali-cuda13]')")
    return request.param
