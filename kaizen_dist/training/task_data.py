"""The data of a task: its order, its images and those replayed, and the loader of a rank."""

from collections.abc import Callable
from functools import cache

import torch

from kaizen_dist.config import Config
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.replay import choose
from kaizen_dist.stream.replay_order import NEWEST
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.backend import CPU
from kaizen_dist.views.loader import Loader


def task_loader(
    config: Config,
    stream: Stream,
    task: int,
    replayed: Callable[[int], Split],
    rank: int = 0,
    world_size: int = 1,
    device: torch.device = CPU,
    replay_order: int = NEWEST,
) -> Loader:
    """The loader of a rank in a task; `replayed` gives the images kept of a past task, and
    `replay_order` is the run's.

    Raises:
        UsageError: if the world size does not fit the lanes, or the batch is larger than the task.
    """
    past = range(task) if config.replay.fraction > 0 else ()
    splits = {t: replayed(t) for t in past} | {task: stream.split(task, "train")}
    order = Order(
        seed=config.train.seed,
        task=task,
        size=len(splits[task]),
        batch_size=config.train.batch_size,
        lanes=config.lanes,
        replay_sizes=tuple(len(splits[t]) for t in past),
        replay_batch_size=config.replay.batch_size,
        replay_order=replay_order,
    )
    lanes = lanes_of_rank(config.lanes, rank, world_size)
    return Loader(order, splits, config.views, lanes, device)


def replay_without_run(config: Config, stream: Stream) -> Callable[[int], Split]:
    """`replayed` for `task_loader` without a run's store: the images that a run would keep of a
    task, read from the stream.

    Calling it raises UsageError if they depend on a trained model (replay.select=herding).
    """

    @cache
    def replayed(task: int) -> Split:
        whole, replay = stream.split(task, "train"), config.replay
        return whole.take(choose(whole, replay.fraction, replay.select, config.train.seed, task))

    return replayed
