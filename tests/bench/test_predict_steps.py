"""The model of a step on N nodes, on numbers worked out by hand."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tool(name: str):
    """A program of tools/ as a module."""
    loader = SourceFileLoader(name, str(ROOT / "tools" / name))
    module = module_from_spec(spec_from_loader(name, loader))
    sys.modules[name] = module  # dataclasses look themselves up there
    loader.exec_module(module)
    return module


model = tool("predict_steps")
STEPS, Links, Work, predict = model.STEPS, model.Links, model.Work, model.predict

LINKS = Links(
    node_bandwidth=100.0,
    node_latency=0.001,
    network_bandwidth=10.0,
    network_latency=0.01,
    overlap=0.5,
)


def test_alone_a_step_is_its_computation():
    found = predict(Work(2.0, 1.0, 1000, 50, 7), LINKS, nodes=1, ranks_per_node=1)
    assert (found.step_seconds, found.waited_seconds, found.ranks) == (2.0, 0.0, 1)


def test_gradients_hide_behind_the_backward_pass():
    """4 ranks: 2 * 3/4 * 100 B / 100 B/s = 1.5 s, and 2 * 2 hops of 1 ms."""
    short = predict(Work(8.0, 4.0, 100), LINKS, nodes=1, ranks_per_node=4)
    assert short.waited_seconds == 0.0
    long = predict(Work(8.0, 2.0, 100), LINKS, nodes=1, ranks_per_node=4)
    assert long.waited_seconds == pytest.approx(1.504 - 1.0)
    assert long.step_seconds == pytest.approx(8.504)
    assert long.efficiency(alone=8.0) == pytest.approx(8 / 8.504)


def test_between_nodes_the_network_carries_it():
    """2 nodes of 2: 2 * 3/4 * 100 / 10 = 15 s, 4 hops of 10 ms, half a second hidden."""
    found = predict(Work(8.0, 1.0, 100), LINKS, nodes=2, ranks_per_node=2)
    assert found.waited_seconds == pytest.approx(15.04 - 0.5)


def test_what_is_gathered_and_what_is_small_is_waited_for():
    """4 ranks: 3 * 3 * 10 B / 100 B/s and 2 * 4 hops; 5 collectives of 4 hops."""
    found = predict(Work(8.0, 4.0, 0, gathered_bytes=10, small_collectives=5), LINKS, 1, 4)
    assert found.waited_seconds == pytest.approx(0.9 + 0.008 + 0.02)


@pytest.mark.parametrize(("ranks", "hops"), [(2, 2), (3, 4), (4, 4), (5, 6), (8, 6), (9, 8)])
def test_small_collectives_take_a_tree(ranks, hops):
    found = predict(Work(1.0, 1.0, 0, small_collectives=1), LINKS, 1, ranks)
    assert found.waited_seconds == pytest.approx(hops * 0.001)


def test_the_document_says_what_the_model_says():
    said = (ROOT / "docs" / "performance.md").read_text()
    assert model.table() in said
    for work in STEPS.values():
        assert f"{1000 * work.compute_seconds:.0f} ms" in said
        assert f"{work.small_collectives} collectives" in said
        assert f"{work.gradient_bytes / 1e6:.0f} MB" in said.replace("\n", " ")
