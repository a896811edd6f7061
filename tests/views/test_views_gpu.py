"""Views on a GPU: those of the CPU for torch, DALI's own decoder within a few levels of them."""

import io

import numpy as np
import pytest
import torch
from pictures import encoded, photo
from PIL import Image

from kaizen_dist.stream.shards import Split
from kaizen_dist.views.choose import open_backend
from kaizen_dist.views.loader import Loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda")


def on_gpu(task, **settings) -> Loader:
    loader = task.loader(**settings)
    return Loader(loader.order, loader.splits, loader.config, loader.lanes, GPU)


def test_batches_lie_there_whole_while_the_device_is_busy(task, backend):
    settings = {"backend": backend, "workers": 3, "prefetch": 4}
    steps = [(epoch, step) for epoch in range(3) for step in range(task.order.steps_per_epoch)]
    busy, sums = torch.rand(2000, 2000, device=GPU), []
    for batch in on_gpu(task, **settings).batches(steps):
        assert batch.views.device.type == "cuda"
        assert batch.labels.is_pinned()
        for _ in range(20):
            busy = (busy @ busy).clamp(0, 1)
        # Asynchronous: what is summed must still be there when its turn comes.
        sums.append(batch.views.double().sum())
        there = batch.to(GPU, torch.float32)
        assert there.labels.is_cuda
        del batch, there
    fresh = on_gpu(task, **settings)
    for where, total in zip(steps, sums, strict=True):
        assert torch.equal(fresh.batch(*where).views.double().sum(), total)


def test_views_are_those_of_the_cpu(task, backend):
    ours, theirs = (
        on_gpu(task, backend=backend).batch(0, 0),
        task.loader(backend="torch").batch(0, 0),
    )
    assert np.array_equal(ours.ids, theirs.ids)
    levels = (ours.views.cpu() - theirs.views).abs().mean() * 0.226 * 255
    assert levels < 1.5


def test_views_of_decoded_images_are_the_same_to_the_last_bit(task, backend):
    task.damage(1, int(task.order.picks(0, 0).row[0]))
    settings = {"backend": backend, "max_bad": 0.01}
    kept, plain = on_gpu(task, **settings, memory_budget=0.001), on_gpu(task, **settings)
    for epoch in (0, 0, 1):
        ours, theirs = kept.batch(epoch, 0), plain.batch(epoch, 0)
        assert torch.equal(ours.views, theirs.views)
        assert ours.replaced == theirs.replaced
    assert len(kept.bad_samples) == 1


def test_a_broken_image_is_found(task, backend):
    rows = task.order.picks(0, 0).row[:2].tolist()
    # Read by another: what has begun to read a shard refuses one that has changed since.
    start = Split.open(task.splits[1].folder, "train").read(rows[1])[:60]
    task.damage(1, rows[0])
    task.damage(1, rows[1], start)
    batch = on_gpu(task, backend=backend, max_bad=0.01).batch(0, 0)
    assert [f.where for f in batch.replaced] == [task.splits[1].where(row) for row in rows]
    assert torch.isfinite(batch.views).all()
    maker = open_backend(task.loader(backend=backend).config, GPU)
    assert maker.centre_views([task.splits[1].read(5)]).is_cuda


JPEGS = {
    "4:2:0": {"quality": 75},
    "4:2:0, fine": {"quality": 95},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
}
SIDES = [(375, 500), (500, 333), (64, 48), (33, 31), (32, 32)]


def jpegs(**options) -> tuple[list[bytes], np.ndarray]:
    """Of every size three, and the sizes."""
    images = [encoded(photo(3 * n + m, *SIDES[n]), **options) for m in range(3) for n in range(5)]
    return images, np.array(SIDES * 3)


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("backend", ["dali"], indirect=True)
def test_a_jpeg_is_decoded_as_pillow_does(task, backend, kind):
    """Colours that are not stretched as a CPU's decoder does are beyond 8 levels in 10 % of the
    pixels of these."""
    images, sizes = jpegs(**JPEGS[kind])
    maker = open_backend(task.loader(backend=backend).config, GPU)
    apart = []
    for data, pixels in zip(images, maker.decode(images, sizes), strict=True):
        theirs = np.asarray(Image.open(io.BytesIO(data))).astype(int)
        apart.append(np.abs(pixels.cpu().numpy().astype(int) - theirs).reshape(-1, 3))
        assert (apart[-1].max(-1) > 8).mean() < 0.02
    whole = np.concatenate(apart)
    mean, beyond = whole.mean(), (whole.max(-1) > 8).mean()
    print(f"{kind}: mean {mean:.3f} levels, largest {whole.max()}, beyond 8 {100 * beyond:.4f} %")
    assert mean < 1
    assert beyond < 0.002


@pytest.mark.parametrize("backend", ["dali"], indirect=True)
def test_an_images_pixels_do_not_depend_on_those_beside_it(task, backend):
    images, sizes = jpegs()
    maker = open_backend(task.loader(backend=backend).config, GPU)
    together = maker.decode(images, sizes)
    alone = [maker.decode([image], sizes[n : n + 1])[0] for n, image in enumerate(images)]
    turned = maker.decode(images[::-1], sizes[::-1])[::-1]
    for pixels, single, other in zip(together, alone, turned, strict=True):
        assert torch.equal(pixels, single)
        assert torch.equal(pixels, other)


def some_time() -> None:
    """Half a second or so of the current stream's."""
    torch.cuda._sleep(1_000_000_000)


@pytest.mark.parametrize("backend", ["dali"], indirect=True)
def test_images_that_stay_decoded_lie_where_no_other_work_still_writes(task, backend):
    images, sizes = jpegs()
    maker = open_backend(task.loader(backend=backend).config, GPU)
    first = maker.decode(images, sizes)
    expected = [pixels.cpu() for pixels in first]
    used = [torch.zeros_like(pixels) for pixels in first]
    torch.cuda.synchronize()
    some_time()
    for pixels in used:
        pixels.fill_(255)
    # Nothing names them from here on, and they are still to be written.
    del used, pixels
    again = maker.decode(images, sizes)
    torch.cuda.synchronize()
    for ours, theirs in zip(again, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs)


def test_views_for_evaluation_are_there_until_they_are_looked_at(task, backend):
    maker = open_backend(task.loader(backend=backend, size=32).config, GPU)
    batches = [[encoded(photo(8 * b + n, 40, 40)) for n in range(8)] for b in range(4)]
    expected = [maker.centre_views(batch).double().sum().item() for batch in batches]
    sums = []
    for batch in batches:
        views = maker.centre_views(batch)
        some_time()
        sums.append(views.double().sum())
        del views
    assert [total.item() for total in sums] == expected
