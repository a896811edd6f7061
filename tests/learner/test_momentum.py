"""The momentum network: the average of parameters, at every step, and its own buffers."""

import pytest
import torch
from lightly.models.utils import update_momentum
from torch import nn

from kaizen_dist.learner.momentum import MomentumNetwork, cosine_tau


def test_average_at_every_step(golden):
    """Eight steps against the reference's under the version that does not skip the first."""
    entry = golden("ema")
    linear = nn.Linear(4, 3, bias=False).double()
    linear.weight.data.copy_(entry["momentum_w_before"])
    network = MomentumNetwork(linear, nn.Identity())
    linear.weight.data.copy_(entry["online_w"])
    for step, (tau, expected) in enumerate(
        zip(entry["tau_used_pl16"], entry["momentum_w_pl16"], strict=True)
    ):
        assert cosine_tau(0.99, 1.0, step / 8) == pytest.approx(tau.item(), abs=1e-12)
        network.update(linear.parameters(), cosine_tau(0.99, 1.0, step / 8))
        torch.testing.assert_close(network.backbone.weight.data, expected, rtol=0, atol=1e-12)


def test_average_as_lightlys():
    student, slow = nn.Linear(5, 4), nn.Linear(5, 4)
    network = MomentumNetwork(slow, nn.Identity())
    update_momentum(student, slow, 0.9)
    network.update(student.parameters(), 0.9)
    torch.testing.assert_close(network.backbone.weight.data, slow.weight.data)


def test_each_view_is_a_batch_and_buffers_are_its_own(small_learner, batch):
    learner = small_learner("byol").train()
    own = learner.momentum.backbone.network[1]
    learner(*batch)
    # Two forwards, one a view; the student's statistics moved by themselves.
    assert own.num_batches_tracked == 2
    with torch.no_grad():
        learner.momentum.backbone.network[0].weight.add_(1.0)
    learner(*batch)
    before = own.running_mean.clone()
    learner.after_step(0.0)
    assert torch.equal(own.running_mean, before)
    assert not torch.equal(own.running_mean, learner.backbone.network[1].running_mean)


def test_keys_have_no_graph(small_learner, batch):
    keys = small_learner("mocov2plus").momentum(batch[0])
    assert not any(k.requires_grad for k in keys)
    for key in keys:
        torch.testing.assert_close(key.norm(dim=1), torch.ones(8, dtype=torch.float64))
