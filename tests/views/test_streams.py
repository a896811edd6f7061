"""What a backend does on which stream of a GPU, by the calls it makes; here without one.

An allocator hands memory out again as soon as nothing names it, to whoever asks for some on the
stream it was made on: work of other streams that is still to come has to be recorded with it.
The same on a GPU, by what is read: test_views_gpu.py.
"""

import io
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from kaizen_dist.views.backend import CPU
from kaizen_dist.views.choose import open_backend

ASKER, OWN = "the asker's stream", "the backend's own"


@dataclass
class Stream:
    """In place of a `torch.cuda.Stream`."""

    name: str
    calls: list[tuple[str, str]] = field(repr=False)
    cuda_stream: int = 0

    def synchronize(self) -> None:
        self.calls.append(("wait", self.name))


class OnGpu(torch.Tensor):
    """In place of a tensor on a GPU."""

    calls: list[tuple[str, str]]
    is_cuda = True

    def record_stream(self, stream: Stream) -> None:
        self.calls.append(("record", stream.name))


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str]]:
    """(what, on which stream) of all that is done on a GPU."""
    done: list[tuple[str, str]] = []
    current = [Stream(ASKER, done)]

    @contextmanager
    def on(stream):
        current.append(stream or current[-1])
        yield
        current.pop()

    def there(tensor: torch.Tensor, what: str) -> torch.Tensor:
        done.append((what, current[-1].name))
        tensor = tensor.as_subclass(OnGpu)
        tensor.calls = done
        return tensor

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking, "a thread that waits would keep a core busy"

        def record(self, stream) -> None:
            self.stream = stream

        def synchronize(self) -> None:
            self.stream.synchronize()

    empty, to = torch.empty, torch.Tensor.to

    def sent(tensor, *arguments, non_blocking=False, **options):
        if arguments != (CPU,):
            return to(tensor, *arguments, non_blocking=non_blocking, **options)
        assert non_blocking
        return there(tensor, "copy" if hasattr(tensor, "pinned") else "copy from pageable memory")

    def pinned(tensor):
        tensor.pinned = True
        return tensor

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", sent)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: there(empty(*a, **k), "make"))
    return done


@pytest.fixture
def maker(task, backend, calls, monkeypatch):
    """A backend that takes itself to be on a GPU."""
    made = open_backend(task.loader(backend=backend).config, CPU)
    made._stream = Stream(OWN, calls)
    if backend == "dali":
        from kaizen_dist.views import dali_backend

        feed = dali_backend.feed_ndarray

        def copied(result, tensor, stream) -> None:
            calls.append(("copy", stream.name))
            feed(result, tensor)

        monkeypatch.setattr(dali_backend, "feed_ndarray", copied)
    return made


@pytest.fixture
def asked(task, maker):
    """The ways to ask for views, by their names."""
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "PNG")
    parameters = task.loader().samples(0, 0).parameters
    n = len(parameters[0].flip)
    images, sizes = [data.getvalue()] * n, np.full((n, 2), 8)
    pixels = [torch.zeros(8, 8, 3, dtype=torch.uint8)] * n
    return {
        "views": lambda: maker.views(images, sizes, parameters),
        "views_of": lambda: maker.views_of(pixels, parameters),
        "centre_views": lambda: maker.centre_views(images),
        "decode": lambda: maker.decode(images, sizes),
    }


@pytest.mark.parametrize("how", ["views", "views_of", "centre_views"])
def test_views_are_complete_and_outlive_what_their_asker_does(asked, calls, how):
    """Else an evaluation's images become those of the next batch before they are looked at."""
    asked[how]()
    *before, last, after = calls
    assert {stream for _, stream in before} == {OWN}
    assert {what for what, _ in before} <= {"make", "copy", "wait"}
    assert (last, after) == (("wait", OWN), ("record", ASKER))


@pytest.mark.parametrize("backend", ["dali"], indirect=True)
def test_images_that_stay_decoded_are_made_where_they_are_filled_and_read(asked, calls, backend):
    """Else they lie where work of the training, not yet done, still reads and writes."""
    pixels = asked["decode"]()
    assert calls.count(("make", OWN)) == len(pixels)
    assert {stream for _, stream in calls} == {OWN}
    assert calls[-1] == ("wait", OWN)


def test_batches_outlive_what_their_asker_does(task, maker, calls):
    loader = task.loader(workers=1, prefetch=1)
    vars(loader)["backend"] = maker
    for _ in loader.batches([(0, 0)]):
        assert calls[-2:] == [("record", ASKER)] * 2
