"""Threads beside the one that trains."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kaizen_dist.common.threads import once, thread_setup


@pytest.fixture
def devices(monkeypatch) -> list[tuple[str, int]]:
    """(thread, GPU) of all that take a GPU."""
    taken = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda d: taken.append((threading.current_thread().name, d.index))
    )
    return taken


@pytest.fixture
def two_cores():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def cores_of_a_thread(device: torch.device) -> int:
    with ThreadPoolExecutor(1, "beside", thread_setup(device)) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_a_thread_takes_its_ranks_device_and_one_core(devices, two_cores):
    assert cores_of_a_thread(torch.device("cuda", 3)) == 1
    assert devices == [("beside_0", 3)]
    assert torch.get_num_threads() == 2, "the thread that trains has lost its cores"


def test_no_device_is_taken_where_none_is_named(devices):
    for device in (torch.device("cpu"), torch.device("cuda")):
        assert cores_of_a_thread(device) == 1
    assert devices == []


class Kitchen:
    def __init__(self) -> None:
        self.ovens = 0

    @once
    def oven(self) -> object:
        time.sleep(0.05)
        self.ovens += 1
        return object()

    @once
    def nothing(self) -> None:
        self.ovens += 1


def test_threads_make_it_once_and_every_object_its_own():
    kitchens = Kitchen(), Kitchen()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: kitchens[i % 2].oven, range(16)))
    assert [kitchen.ovens for kitchen in kitchens] == [1, 1]
    assert len(set(found[::2])) == len(set(found[1::2])) == 1
    assert found[0] is not found[1]


def test_nothing_counts_as_made():
    kitchen = Kitchen()
    assert kitchen.nothing is None
    assert kitchen.nothing is None
    assert kitchen.ovens == 1


def test_what_fails_is_tried_again():
    class Shy:
        asked = 0

        @once
        def answer(self) -> int:
            self.asked += 1
            if self.asked == 1:
                raise OSError("not now")
            return 42

    shy = Shy()
    with pytest.raises(OSError, match="not now"):
        shy.answer  # noqa: B018
    assert shy.answer == 42
