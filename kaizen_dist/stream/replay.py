"""The replay store: which images of a finished task are kept (usually 1 %), and where.

    RUN/replay/task-00/replay-000000.tar ...    the images, in the task's shard order
    RUN/replay/task-00/replay.index.npy
    RUN/replay/task-00/replay.json              bytes and sha256 of the others

`choose` is a pure function of the task, independent of ranks and lanes. The ranks write the store's
shards together, and each may replay any of it (replay_order.py). It is read as an ordinary split.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from kaizen_dist.common import rng
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import (
    atomic_write,
    cannot_write,
    make_folder,
    read_bytes,
    read_json,
    remove,
)
from kaizen_dist.common.inventory import Inventory, changed, inventory, reasons, unlisted
from kaizen_dist.common.run_layout import REPLAY
from kaizen_dist.stream.index import (
    decode_index,
    encode_index,
    index_name,
    join_rows,
    write_index,
)
from kaizen_dist.stream.shards import Split, shard_name, write_shard

PART = "replay"
MANIFEST = "replay.json"
_SHARD_SAMPLES = 1000
_INVENTORY: Final = TypeAdapter(Inventory)


def choose(
    split: Split,
    fraction: float,
    rule: str,
    seed: int,
    task: int,
    features: NDArray[np.floating] | None = None,
    bad: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Rows of a task's training split to keep, ascending.

    Of every class floor(fraction n) images, at least one; the unlabelled ones count as one
    more class. `first` takes the first of a class in the order of the source (as the paper's
    reference code does), `random` a seeded uniform choice, `herding` those whose mean stays
    nearest to the class mean of `features` [n, d] (iCaRL, arXiv 1611.07725, algorithm 4).
    The rows `bad` [k], which do not decode, are left out.
    """
    if rule == "herding" and features is None:
        raise UsageError("replay.select=herding needs features of the task, so a trained model")
    labels, ids = split.labels, split.ids
    kept = []
    # One sort for all classes: a look through the whole task for each takes long for many.
    by_class = np.lexsort((ids, labels))
    if bad is not None:
        by_class = by_class[~np.isin(by_class, bad)]
    classes = np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1)
    for rows in classes:
        label, count = labels[rows[0]], max(1, int(fraction * len(rows)))
        if rule == "first":
            chosen = rows[:count]
        elif rule == "herding":
            assert features is not None
            chosen = rows[herd(features[rows], count)]
        else:
            key = rng.key("replay", seed, task, int(label))
            chosen = rows[rng.shuffle(key, len(rows))[:count]]
        kept.append(chosen)
    return np.sort(np.concatenate(kept))


def herd(features: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """`count` rows of features [n, d], each chosen so that the mean of those chosen so far
    stays nearest to the mean of all (of normalised features)."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    target = unit.mean(axis=0)
    total = np.zeros_like(target)
    free = np.ones(len(unit), dtype=bool)
    chosen = []
    for k in range(1, count + 1):
        distance = np.linalg.norm(target - (total + unit) / k, axis=1)
        best = int(np.argmin(np.where(free, distance, np.inf)))
        free[best] = False
        total += unit[best]
        chosen.append(best)
    return np.array(chosen, dtype=np.int64)


class ReplayStore:
    """The replay store of a run, with one folder per finished task."""

    def __init__(self, run: Path) -> None:
        self.root = run / REPLAY

    def folder(self, task: int) -> Path:
        return self.root / self.folders([task])[0]

    @staticmethod
    def folders(tasks: Iterable[int]) -> list[str]:
        """The names of their folders."""
        return [f"task-{task:02d}" for task in tasks]

    def split(self, task: int) -> Split:
        """The samples kept of a task."""
        return Split.open(self.folder(task), PART)

    def write_shards(
        self, task: int, split: Split, rows: NDArray[np.int64], rank: int, world_size: int
    ) -> None:
        """Write this rank's share of a task's shards into a temporary folder, for `commit`.

        Raises:
            WriteError: if the folder cannot be written.
        """
        folder = self._unfinished(task)
        make_folder(folder)
        for number in range(rank, _shards(len(rows)), world_size):
            part = rows[number * _SHARD_SAMPLES : (number + 1) * _SHARD_SAMPLES]
            samples = (split.sample(int(row)) for row in part)
            rows_written, _ = write_shard(folder, PART, number, samples)
            atomic_write(folder / _rows_name(number), encode_index(rows_written))

    def commit(self, task: int, count: int) -> None:
        """On one rank, after all have written: write the index and rename the folder."""
        unfinished, final = self._unfinished(task), self.folder(task)
        numbers = range(_shards(count))
        noted = [unfinished / _rows_name(number) for number in numbers]
        names = [*(shard_name(PART, number) for number in numbers), index_name(PART)]
        try:
            rows = join_rows(decode_index(read_bytes(path)) for path in noted)
            write_index(unfinished, PART, rows)
            listed = inventory(unfinished, names)
            atomic_write(unfinished / MANIFEST, _INVENTORY.dump_json(listed, indent=1))
            for path in noted:
                path.unlink()
            remove(final)
            unfinished.rename(final)
        except OSError as error:
            raise cannot_write(final, error) from error

    def manifest(self, tasks: Iterable[int]) -> dict[str, Inventory]:
        """The inventories of some tasks, by the names of their folders.

        Raises:
            DataError: if one of them cannot be read.
        """
        return {self.folder(task).name: self._manifest(self.folder(task)) for task in tasks}

    def verify(self, manifest: Mapping[str, Inventory]) -> None:
        """Check that the store holds the files a checkpoint was saved with, and no others.

        Raises:
            DataError: naming the file that is missing, damaged or another one.
        """
        for name, listed in manifest.items():
            folder = self.root / name
            if folder.is_symlink():
                raise DataError(f"{folder} is a link; a run's replay store holds its own files")
            wrong = changed(folder, listed) + unlisted(folder, listed, MANIFEST)
            if wrong:
                raise DataError(
                    f"the replay store is not the one this run was saved with: {wrong[0]}; "
                    "restore it from a copy"
                )

    def _manifest(self, folder: Path) -> Inventory:
        try:
            return _INVENTORY.validate_python(read_json(folder / MANIFEST, follow=False))
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / MANIFEST} cannot be read ({reasons(error)})") from error

    def discard_unfinished(self, task: int) -> None:
        """Remove the temporary folder of an interrupted write. Raises WriteError."""
        unfinished = self._unfinished(task)
        try:
            remove(unfinished)
        except OSError as error:
            raise cannot_write(unfinished, error) from error

    def _unfinished(self, task: int) -> Path:
        return self.root / f".{self.folder(task).name}.tmp"


def _rows_name(number: int) -> str:
    """The file in which the writer of a shard leaves its INDEX rows for `commit`."""
    return f"{PART}-{number:06d}.npy"


def _shards(count: int) -> int:
    return -(-count // _SHARD_SAMPLES)
