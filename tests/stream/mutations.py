"""Damage to the shards of a small real stream, seeded, and what readers must make of it.

A case is a number: it says which file of the stream is damaged, how, and where. Run as a program
(`mutations.py loader STREAM OUT BACKEND COUNT`, or `mutations.py images STREAM COUNT`) it prints a
line for each case, so that a test sees which of them ended the process.
"""

import io
import os
import random
import struct
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from kaizen_dist.common.errors import DataError
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.views import eval_view
from kaizen_dist.views.backend import UndecodableError
from kaizen_dist.views.loader import Batch, Loader

CASES = 200
BLOCK = tarfile.BLOCKSIZE


def make_stream(folder: Path) -> Stream:
    """Two tasks: digits as PNG, and pieces of two photographs as JPEG of many kinds."""
    digits = load_digits()
    for digit in (0, 1):
        for n, pixels in enumerate(digits.images[digits.target == digit][:30]):
            save(folder / f"source/{digit}-digit/{n:02d}.png", (pixels * 15.9).astype(np.uint8))
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for n in range(30):
            top, left, height, width = 6 * n, 9 * n, 40 + n % 3 * 8, 48 + n % 4 * 8
            piece = photo[top : top + height, left : left + width]
            options = [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 95}]
            save(folder / f"source/{name}/{n:02d}.jpg", piece, **options[n % 4])
    return prepare(f"folder:{folder / 'source'}", folder / "stream", tasks=2, progress=False)


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


# ---- damage -----------------------------------------------------------------------------


@dataclass
class Shard:
    """A shard's bytes, where its members lie, and where chance comes from."""

    data: bytearray
    chance: random.Random

    def members(self, ending: str = "") -> list[tarfile.TarInfo]:
        with tarfile.open(fileobj=io.BytesIO(self.data)) as tar:
            return [m for m in tar if m.name.endswith(ending)]

    def images(self) -> list[tarfile.TarInfo]:
        return [m for m in self.members() if not m.name.endswith(".cls")]

    def some_image(self) -> tarfile.TarInfo:
        return self.chance.choice(self.images())

    def flip(self, first: int, end: int, bits: int = 1) -> None:
        for _ in range(bits):
            bit = self.chance.randrange(8 * first, 8 * end)
            self.data[bit // 8] ^= 1 << bit % 8

    def put(self, at: int, data: bytes) -> None:
        self.data[at : at + len(data)] = data


def truncated(shard: Shard) -> None:
    del shard.data[shard.chance.randrange(len(shard.data)) :]


def bits_in_an_image(shard: Shard) -> None:
    image = shard.some_image()
    start = image.offset_data
    shard.flip(start, start + image.size, shard.chance.choice([1, 1, 2, 8, 40]))


def bits_in_an_image_header(shard: Shard) -> None:
    image = shard.some_image()
    start = image.offset_data
    shard.flip(start, start + min(image.size, 200), shard.chance.choice([1, 2, 4]))


def bits_in_a_tar_header(shard: Shard) -> None:
    offset = shard.chance.choice(shard.members()).offset
    shard.flip(offset, offset + 345, shard.chance.choice([1, 3]))


def swapped(shard: Shard) -> None:
    """The contents of two images, or two blocks of the file, change places."""
    one, other = shard.chance.sample(shard.images(), 2)
    alike = [m for m in shard.images() if m.size == one.size and m is not one]
    if alike and shard.chance.random() < 0.5:
        size, other = one.size, shard.chance.choice(alike)
    else:
        size = BLOCK
    a, b = one.offset_data, other.offset_data
    first, second = bytes(shard.data[a : a + size]), bytes(shard.data[b : b + size])
    shard.put(a, second)
    shard.put(b, first)


def emptied(shard: Shard) -> None:
    """The whole file, an image, or the length in its member's header."""
    image = shard.some_image()
    what = shard.chance.randrange(3)
    if what == 0:
        shard.data.clear()
    elif what == 1:
        cut = shard.chance.randrange(image.size)
        shard.put(image.offset_data + cut, bytes(image.size - cut))
    else:
        shard.put(image.offset + 124, b"00000000000\0")


def wrong_label(shard: Shard) -> None:
    label = shard.chance.choice(shard.members(".cls"))
    old = bytes(shard.data[label.offset_data : label.offset_data + label.size])
    texts = [b"0", b"1", b"2", b"3", b"9", b"-", b"x", b"\xff", b"\0", b" "]
    new = shard.chance.choice([text for text in texts if text != old])
    shard.put(label.offset_data, new)


def absurd_header(shard: Shard) -> None:
    """An image that claims to be enormous, or a member that does."""
    image = shard.some_image()
    start = image.offset_data
    big = shard.chance.choice([0, 1, 65535, 20000])
    if shard.chance.random() < 0.3:
        shard.put(image.offset + 124, b"77777777777\0")
    elif image.name.endswith("png"):
        shard.put(start + 16, struct.pack(">II", big << 15, big))
    else:
        frame = next(
            shard.data.find(marker, start)
            for marker in (b"\xff\xc0", b"\xff\xc2")
            if 0 < shard.data.find(marker, start) < start + image.size
        )
        shard.put(frame + 5, struct.pack(">HH", big, big))


DAMAGE: tuple[Callable[[Shard], None], ...] = (
    truncated,
    bits_in_an_image,
    bits_in_an_image_header,
    bits_in_a_tar_header,
    swapped,
    emptied,
    wrong_label,
    absurd_header,
)


@dataclass
class Case:
    """A damaged copy of a stream."""

    kind: str
    task: int
    shard: Path
    root: Path


def make_case(number: int, whole: Stream, out: Path) -> Case:
    """The case of that number; what is not damaged is linked, not copied."""
    chance = random.Random(number)
    damage = DAMAGE[number % len(DAMAGE)]
    root = out / f"{number:03d}-{damage.__name__}"
    for path in sorted(p for p in whole.root.rglob("*") if p.is_file()):
        there = root / path.relative_to(whole.root)
        there.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, there)
    task = chance.randrange(2)
    shard = root / f"task-{task:02d}" / "train-000000.tar"
    before = shard.read_bytes()
    changed = Shard(bytearray(before), chance)
    while changed.data == before:
        damage(changed)
    shard.unlink()
    shard.write_bytes(changed.data)
    return Case(damage.__name__, task, shard, root)


# ---- what a loader must make of it --------------------------------------------------------


class Reader:
    """Reads an epoch of a task, whole and damaged, with one backend for all."""

    def __init__(self, whole: Stream, backend: str) -> None:
        self.whole = whole
        self.config = ViewsConfig(size=16, backend=backend, max_bad=1.0, workers=1, prefetch=1)
        self.intact = [self._read(whole, task) for task in range(2)]
        self.rows = [
            {int(id): row for row, id in enumerate(whole.split(task, "train").ids)}
            for task in range(2)
        ]

    def _loader(self, stream: Stream, task: int) -> Loader:
        split = stream.split(task, "train")
        loader = Loader(Order(0, task, len(split), 12, 2), {task: split}, self.config)
        if hasattr(self, "backend"):
            loader.backend = self.backend
        self.backend = loader.backend
        return loader

    def _read(self, stream: Stream, task: int) -> list[Batch]:
        loader = self._loader(stream, task)
        return list(loader.batches((0, step) for step in range(loader.order.steps_per_epoch)))

    def check(self, case: Case) -> str:
        """What became of a case: `error`, `replaced`, `same`, or `unseen` for an image that still
        decodes. Raises AssertionError if it is none of them, or has no name."""
        try:
            stream = Stream.open(case.root)
            batches = self._read(stream, case.task)
        except DataError as error:
            if str(case.shard) not in str(error):
                raise
            return "error"
        outcome = "same"
        for ours, intact in zip(batches, self.intact[case.task], strict=True):
            found = self._compare(case, stream, ours, intact)
            outcome = max(outcome, found, key=["same", "unseen", "replaced"].index)
        return outcome

    def _compare(self, case: Case, stream: Stream, ours: Batch, intact: Batch) -> str:
        damaged, whole = (s.split(case.task, "train") for s in (stream, self.whole))
        rows = self.rows[case.task]
        unseen = False
        changed = ours.ids != intact.ids
        assert changed.sum() == len(ours.replaced)
        for fault, id in zip(ours.replaced, intact.ids[changed].tolist(), strict=True):
            assert fault.where.startswith(f"{case.shard}: sample {id:012d}")
            assert fault.reason
        for slot, id in enumerate(ours.ids.tolist()):
            assert ours.labels[slot] == whole.index[rows[id]]["label"]
            if changed[slot] or torch.allclose(
                ours.views[:, slot], intact.views[:, slot], atol=1e-5
            ):
                continue
            # Only other bytes may make another view; that they are others, `verify` says.
            assert damaged.read(rows[id]) != whole.read(rows[id]), f"sample {id} changed"
            unseen = True
        return "replaced" if ours.replaced else "unseen" if unseen else "same"


def through_loader(stream: str, out: str, backend: str, cases: str) -> None:
    whole = Stream.open(stream)
    reader = Reader(whole, backend)
    for number in range(int(cases)):
        case = make_case(number, whole, Path(out))
        print(number, case.kind, reader.check(case), flush=True)


# ---- single images, to compare the backends -----------------------------------------------


def damaged_image(chance: random.Random, image: bytes) -> bytes:
    data = bytearray(image)
    first, last = sorted(chance.sample(range(len(data)), 2))
    match chance.choice(["bits", "bits", "header", "header", "cut", "zeros", "turned", "more"]):
        case "bits":
            for _ in range(chance.choice([1, 1, 3, 30])):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case "header":
            data[chance.randrange(min(len(data), 200))] = chance.randrange(256)
        case "cut":
            del data[last:]
        case "zeros":
            data[first : first + 50] = bytes(len(data[first : first + 50]))
        case "turned":
            data[first:last] = data[first:last][::-1]
        case "more":
            data[first:first] = chance.randbytes(20)
    return bytes(data)


def verdict(decode: Callable[[], Any]) -> str:
    try:
        decode()
    except (OSError, UndecodableError):
        return "bad"
    return "good"


def through_backends(stream: str, cases: str) -> None:
    """What Pillow and DALI find of damaged images, decoded each by itself."""
    from kaizen_dist.views.dali_backend import DaliBackend

    splits = [Stream.open(stream).split(task, "train") for task in range(2)]
    maker = DaliBackend(ViewsConfig(size=16), torch.device("cpu"))
    chance = random.Random(0)
    for number in range(int(cases)):
        split = chance.choice(splits)
        image = damaged_image(chance, split.read(chance.randrange(len(split))))
        by_pillow = verdict(lambda image=image: eval_view.decode(image))
        by_dali = verdict(lambda image=image: maker.centre_views([image]))
        print(number, by_pillow, by_dali, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"loader": through_loader, "images": through_backends}[sys.argv[1]](*sys.argv[2:])
