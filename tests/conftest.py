"""What many tests share: a small real stream, and several ranks that are really processes."""

import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import warm
from one_rank import run_rank

from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare

torch.set_num_threads(1)
warm.install()
# Commands find tiny_backbone, too.
_PATH = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _PATH))
os.environ["KAIZEN_DIST_TRUST"] = "tiny_backbone"


@pytest.fixture(autouse=True)
def _cold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests marked `cold` start their commands as users do."""
    if request.node.get_closest_marker("cold"):
        monkeypatch.setattr(warm, "enabled", False)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Stream:
    """The embedded digits in 5 tasks of 2 classes."""
    return prepare("digits", tmp_path_factory.mktemp("streams") / "digits", progress=False)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory) -> Iterator[Path]:
    """For what the tests of one file share. It goes with the last of them: runs with all their
    checkpoints are large, and a whole session's would fill a small disk."""
    folder = tmp_path_factory.mktemp("shared")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nothing listens on."""
    return unused_port()


@pytest.fixture(scope="session")
def fork_server():
    """It has imported everything, which takes each process seconds that is not forked from it."""
    preload = ["kaizen_dist.training.run", "kaizen_dist.bench.baseline_loader", "one_rank"]
    multiprocessing.set_forkserver_preload(preload)
    multiprocessing.forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


@pytest.fixture(scope="session")
def ranks(fork_server):
    """`ranks(function, world, *arguments)`: what `function` (of a test module, with arguments
    and results of plain data) returns on every rank, each a process of its own."""

    def run(function, world: int, *arguments, timeout: float = 600):
        port, environment = unused_port(), dict(os.environ)
        results = fork_server.Queue()
        started = [
            fork_server.Process(
                target=run_rank, args=(function, r, world, port, environment, arguments, results)
            )
            for r in range(world)
        ]
        for process in started:
            process.start()
        try:
            answers = sorted((results.get(timeout=timeout) for _ in started), key=lambda a: a[0])
        finally:
            for process in started:
                process.join(10)
                process.kill()
        for rank, _, error in answers:
            assert error is None, f"rank {rank}:\n{error}"
        return [answer for _, answer, _ in answers]

    return run


@pytest.fixture(scope="session")
def configs() -> Path:
    """The folder of shipped configurations."""
    return Path(__file__).parents[1] / "configs"
