"""Images that stay decoded: the same views to the last bit, read once."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from kaizen_dist.views.backend import CPU
from kaizen_dist.views.choose import open_backend
from kaizen_dist.views.image_cache import decoded_bytes


def encoded(seed: int, kind: str, size=(40, 30), mode="RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(data, kind)
    return data.getvalue()


def test_bytes_are_those_of_the_lanes(task):
    """Any lane may replay any of the 23 kept images."""
    each = 8 * 8 * 3
    assert decoded_bytes(task.order, task.splits, None) == each * (len(task.splits[1]) + 23)
    size = len(task.splits[1])
    expected = each * (size * 5 // 8 - size * 2 // 8 + 23)
    assert decoded_bytes(task.order, task.splits, range(2, 5)) == expected


def test_views_are_the_same_to_the_last_bit(task, backend):
    task.damage(1, int(task.order.picks(1, 2).row[0]))
    settings = {"backend": backend, "max_bad": 0.01, "workers": 2}
    kept = task.loader(**settings, memory_budget=0.001)
    plain = task.loader(**settings)
    assert kept.cache is not None
    assert plain.cache is None
    steps = [(epoch, step) for epoch in range(3) for step in range(task.order.steps_per_epoch)]
    for ours, theirs in zip(kept.batches(steps), plain.batches(steps), strict=True):
        assert np.array_equal(ours.ids, theirs.ids)
        assert torch.equal(ours.views, theirs.views)
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.replaced == theirs.replaced
    assert len(kept.bad_samples) == 1


def test_each_image_is_read_once(task, backend, monkeypatch):
    read = []
    original = type(task.splits[1]).read_all
    monkeypatch.setattr(
        type(task.splits[1]),
        "read_all",
        lambda split, rows: read.extend(rows) or original(split, rows),
    )
    loader = task.loader(backend=backend, memory_budget=0.001, workers=1, prefetch=1)
    steps = [(epoch, step) for epoch in range(4) for step in range(task.order.steps_per_epoch)]
    assert len(list(loader.batches(steps))) == len(steps)
    assert len(task.splits[1]) <= len(read) + 32
    assert len(read) <= len(task.splits[1]) + 23


def test_a_task_that_does_not_fit_is_read_as_ever(task):
    needed = decoded_bytes(task.order, task.splits, None) / 1e9
    assert task.loader(memory_budget=needed).cache is not None
    assert task.loader(memory_budget=0.999 * needed).cache is None
    # An eighth of the lanes needs about an eighth of the task's images, and 23 replayed ones.
    assert task.loader(lanes=[3], memory_budget=needed / 5).cache is not None


@pytest.mark.parametrize("size", [16, 64])
def test_pixels_of_any_format_make_the_views_of_their_file(task, backend, size):
    config = task.loader(backend=backend, size=size, blur=(0.5, 0.5)).config
    images = [encoded(n, kind) for n, kind in enumerate(("JPEG", "PNG", "GIF", "WEBP", "PPM"))]
    images += [encoded(9, "JPEG", (31, 77)), encoded(8, "PNG", (90, 20), "L")]
    sizes = np.array([Image.open(io.BytesIO(image)).size[::-1] for image in images])
    loader = task.loader(backend=backend)
    parameters = loader.samples(0, 0).parameters
    whole = [
        type(p)(**{k: v[: len(images)] for k, v in vars(p).items()} | {
            "crop": np.array([(1, 2, h - 3, w - 5) for h, w in sizes])
        })
        for p in parameters
    ]  # fmt: skip
    maker = open_backend(config, CPU)
    pixels = maker.decode(images, sizes)
    assert [tuple(p.shape) for p in pixels] == [(h, w, 3) for h, w in sizes.tolist()]
    assert all(p.dtype == torch.uint8 for p in pixels)
    assert torch.equal(
        maker.views_of(pixels, (whole[0], whole[1])),
        maker.views(images, sizes, (whole[0], whole[1])),
    )
