"""Views on a GPU: those of the CPU for torch, DALI's own decoder within a few levels of them."""

import numpy as np
import pytest
import torch

from kaizen_dist.views.backend import open_backend
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
    assert len(kept.faults) == 1


def test_a_broken_image_is_found(task, backend):
    rows = task.order.picks(0, 0).row[:2].tolist()
    task.damage(1, rows[0])
    task.damage(1, rows[1], task.splits[1].read(rows[1])[:100])
    batch = on_gpu(task, backend=backend, max_bad=0.01).batch(0, 0)
    assert [f.where for f in batch.replaced] == [task.splits[1].where(row) for row in rows]
    assert torch.isfinite(batch.views).all()
    maker = open_backend(task.loader(backend=backend).config, GPU)
    assert maker.centre_views([task.splits[1].read(5)]).is_cuda
