"""Each method's distillation, with and without the predictor, against the reference's."""

import pytest
import torch
from small_learners import SMALL_SSL

from kaizen_dist.learner.distill import FeatureDistiller, soft_label_loss
from kaizen_dist.learner.gather import ALONE
from kaizen_dist.learner.methods import method_class

KINDS = {
    "byol": "predictive",
    "simsiam": "predictive",
    "simclr": "contrastive",
    "mocov2plus": "contrastive",
    "mocov3": "contrastive",
    "vicreg": "predictive_mse",
    "barlow_twins": "decorrelative",
}


def build(name):
    method = method_class(name)
    return method(4, method.Settings.model_validate(SMALL_SSL[name])).double()


@pytest.mark.parametrize("name", KINDS)
def test_distillation_through_the_predictor(golden, name):
    entry = golden(f"distill_{KINDS[name]}")
    method, distiller = build(name), FeatureDistiller(8, 12).double()
    start = "feature_extractor_distill_predictor."
    weights = {k.removeprefix(start): v for k, v in entry.under("param").items()}
    missing = distiller.predictor.load_state_dict(weights, strict=False).missing_keys
    assert all("running" in k or "num_batches" in k for k in missing)
    leaves = entry.inputs()
    z, old = (leaves["z1"], leaves["z2"]), (leaves["frozen_z1"], leaves["frozen_z2"])
    value = distiller(method, z, tuple(o.detach() for o in old), ALONE)
    entry.agrees(method.distill_weight * value, z1=z[0], z2=z[1])
    for key, expected in entry.under("param_grad").items():
        grad = distiller.predictor.get_parameter(key.removeprefix(start)).grad
        torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_distillation_itself(golden, name):
    entry = golden(f"distill_{KINDS[name]}_nopredictor")
    method, leaves = build(name), entry.inputs()
    value = method.distill(
        leaves["z1"], leaves["z2"], leaves["frozen_z1"], leaves["frozen_z2"], ALONE
    )
    entry.agrees(method.distill_weight * value, **leaves)


def test_soft_label_loss(golden):
    entry = golden("distill_soft_label_lamb2")
    leaves = entry.inputs()
    value = soft_label_loss(leaves["z1"], leaves["z2"], leaves["frozen_z1"], leaves["frozen_z2"])
    entry.agrees(2 * value, **leaves)
