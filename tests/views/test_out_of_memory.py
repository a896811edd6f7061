"""Too little memory is not taken for bad images, and is said with its cure."""

import io
import resource
from pathlib import Path

import pytest
import torch
from PIL import Image

from kaizen_dist.common.errors import KaizenError
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.views.backend import (
    CPU,
    UndecodableError,
    explain_out_of_memory,
    is_out_of_memory,
)
from kaizen_dist.views.choose import open_backend
from kaizen_dist.views.loader import centre_views

SAID = {
    "torch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "torch on a CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    "pinning": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
    "DALI on a CPU": RuntimeError(
        "Critical error in pipeline:\nError in CPU operator `nvidia.dali.fn.resize`,\n"
        "encountered:\n\nstd::bad_alloc\nCurrent pipeline object is no longer valid."
    ),
    "DALI on a GPU": RuntimeError(
        "Critical error in pipeline:\nError in GPU operator `nvidia.dali.fn.resize`,\n"
        "encountered:\n\nCan't allocate 4831838208 bytes on device 0."
    ),
    "CUDA by DALI": RuntimeError("CUDA runtime API error cudaErrorMemoryAllocation (2)"),
    "nvJPEG": RuntimeError("nvJPEG error (5): NVJPEG_STATUS_ALLOCATOR_FAILURE"),
    "Python": MemoryError(),
    "NumPy": MemoryError("Unable to allocate 4.00 GiB for an array with shape (1, 2)"),
}


@pytest.mark.parametrize("error", SAID.values(), ids=SAID)
def test_it_is_told_by_its_words_and_said_in_one_line_with_the_cure(error):
    assert is_out_of_memory(error)
    cure = r"views\.memory_budget or eval\.batch_size"
    with pytest.raises(KaizenError, match=cure) as caught, explain_out_of_memory("eval.batch_size"):
        raise error
    assert type(caught.value) is KaizenError
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_other_errors_stay_what_they_are():
    decoding = "Failed to decode sample #0 : \nCurrent pipeline object is no longer valid."
    for error in (RuntimeError(decoding), UndecodableError({0: "cut"}), ValueError("memory")):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error)) as caught, explain_out_of_memory("train.batch_size"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("error", SAID.values(), ids=SAID)
@pytest.mark.parametrize("backend", ["dali"], indirect=True)
def test_no_image_is_suspected(task, backend, monkeypatch, error):
    from kaizen_dist.views import dali_backend

    def fails(*arguments):
        raise error

    def suspected(*arguments):
        pytest.fail("images were asked whether they are bad")

    loader = task.loader(backend=backend)
    monkeypatch.setattr(dali_backend, "feed_ndarray", fails)
    monkeypatch.setattr(dali_backend.DaliBackend, "_decodes", suspected)
    with pytest.raises(KaizenError, match=r"too little memory.*train\.batch_size"):
        loader.batch(0, 0)
    with pytest.raises(KaizenError, match=r"too little memory.*eval\.batch_size"):
        centre_views(loader.backend, [(task.splits[1], 0)], pytest.fail)
    assert len(loader.bad_samples) == 0


@pytest.mark.parametrize("backend", ["dali"], indirect=True)
def test_nor_while_one_is_asked_alone(task, backend, monkeypatch):
    """A batch that fails for another reason, and then there is no memory to find it."""
    from kaizen_dist.views import dali_backend

    class Pipeline:
        def build(self) -> None: ...
        def feed_input(self, *arguments) -> None: ...
        def run(self) -> None:
            raise SAID["DALI on a GPU"]

    def fails(*arguments):
        raise RuntimeError("Failed to decode sample #0")

    loader = task.loader(backend=backend)
    monkeypatch.setattr(dali_backend, "feed_ndarray", fails)
    loader.backend._decoded = dali_backend._Pool(Pipeline)
    with pytest.raises(KaizenError, match=r"too little memory.*Can't allocate 4831838208 bytes"):
        loader.batch(0, 0)


def in_little_memory(name: str) -> list[str]:
    """What is raised for a good image that does not fit in what a process may have."""
    maker = open_backend(ViewsConfig(size=32, backend=name), CPU)
    small, large = encoded(16), encoded(6000)
    maker.centre_views([small])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 20 * 2**20
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    said = []
    for _ in range(2):
        try:
            with explain_out_of_memory("eval.batch_size"):
                maker.centre_views([small, large])
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    resource.setrlimit(resource.RLIMIT_AS, before)
    return said


def encoded(side: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(data, "JPEG")
    return data.getvalue()


def test_a_process_that_may_have_no_more_says_so(ranks, backend):
    (said,) = ranks(in_little_memory, 1, backend, timeout=60)
    assert len(said) == 2
    for line in said:
        assert line.startswith("KaizenError: too little memory to")
