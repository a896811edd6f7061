"""Work beside other work: the same values, on a GPU without waiting for them."""

import pytest
import torch

from kaizen_dist.learner.side_stream import on_side_stream


def test_on_a_cpu_it_is_done_at_once():
    done = []

    def work(given):
        done.append("work")
        return given + 1, None

    ask = on_side_stream(work, torch.ones(2))
    done.append("other")
    first, second = ask()
    assert done == ["work", "other"]
    assert first.tolist() == [2, 2]
    assert second is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_its_values_are_there_when_they_are_used():
    device = torch.device("cuda", 0)
    torch.manual_seed(0)
    weight = torch.randn(2048, 2048, device=device) / 45

    def chain(x):
        for _ in range(20):
            x = torch.tanh(x @ weight)
        return (x,)

    for _ in range(20):
        # Made, handed over and dropped on one stream while the other still reads it.
        given = torch.randn(2048, 2048, device=device)
        (expected,) = chain(given)
        ask = on_side_stream(chain, given)
        del given
        torch.randn(2048, 2048, device=device)
        (found,) = ask()
        assert torch.equal(found, expected)
