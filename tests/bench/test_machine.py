"""Versions on a machine where this package is a copy and others are missing."""

from importlib import metadata

import pytest
import torch

from kaizen_dist import __version__
from kaizen_dist.bench.machine import machine
from kaizen_dist.config import load
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.runs.resume import Cursor, fresh_results, state_of


@pytest.fixture
def copied(monkeypatch):
    """No package has metadata, as those have none that were copied and not installed."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", missing)


@pytest.mark.usefixtures("copied")
def test_a_package_without_metadata_is_told_as_none():
    facts = machine()
    assert facts["kaizen-dist"] == __version__
    assert facts["webdataset"] is None


@pytest.mark.usefixtures("copied")
def test_a_checkpoint_names_versions_from_the_source(configs, digits, tmp_path):
    config = load(configs / "digits.yaml")
    results = fresh_results(config, digits, RankContext())
    state = state_of(tmp_path, Cursor.beginning(), results, config, digits, RankContext())
    assert state["versions"] == {"kaizen-dist": __version__, "torch": str(torch.__version__)}
