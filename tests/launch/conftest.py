"""One Slurm of four nodes for all tests that ask for it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cluster
import pytest
from killing import SMALL

from kaizen_dist.stream.prepare import prepare


@pytest.fixture
def cluster_folder() -> Iterator[Path]:
    """For a cluster of a test's own: Slurm's sockets lie in it, and their paths may not be long."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def slurm() -> Iterator[cluster.Cluster]:
    """A running cluster of 4 nodes with 4 CPUs each; tests leave its queue empty."""
    reason = cluster.why_not()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        started = cluster.Cluster(Path(folder))
        try:
            started.start()
            yield started
        finally:
            started.stop()


@pytest.fixture(scope="session")
def two_tasks(tmp_path_factory) -> Path:
    """The embedded digits in 2 tasks: the shortest stream that forgets."""
    return prepare("digits", tmp_path_factory.mktemp("s") / "s", tasks=2, progress=False).root


@pytest.fixture(scope="session")
def local(tmp_path_factory, two_tasks, configs) -> Path:
    """A finished run in small settings on four ranks of this machine."""
    run = tmp_path_factory.mktemp("runs") / "local"
    command = [sys.executable, "-m", "kaizen_dist", "train", str(configs / "digits.yaml")]
    command += [f"{key}={value}" for key, value in SMALL.items()]
    command += ["--stream", str(two_tasks), "--out", str(run), "--procs", "4"]
    subprocess.run(command, timeout=500, check=True, stdout=subprocess.DEVNULL)
    return run
