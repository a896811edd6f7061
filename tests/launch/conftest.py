"""One Slurm of four nodes for all tests that ask for it."""

from collections.abc import Iterator

import cluster
import pytest


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[cluster.Cluster]:
    """A running cluster of 4 nodes with 4 CPUs each; tests leave its queue empty."""
    reason = cluster.why_not()
    if reason:
        pytest.skip(reason)
    started = cluster.Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        started.start()
        yield started
    finally:
        started.stop()
