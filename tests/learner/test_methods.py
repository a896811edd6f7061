"""The methods: published shapes and settings, the queue, and what a further one takes."""

import math

import pytest
import torch
from lightly.utils.scheduler import cosine_schedule
from pydantic import ValidationError
from small_learners import SMALL_SSL, small_config
from torch import nn

from kaizen_dist.common.errors import UsageError
from kaizen_dist.learner import methods
from kaizen_dist.learner.gather import ALONE
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.methods import method_class, method_names

ALL = sorted(SMALL_SSL)


def published(name, features=512):
    method = method_class(name)
    settings = {"queue": 16} if name == "mocov2plus" else {}
    return method(features, method.Settings.model_validate(settings))


def shape(module):
    """Kinds and widths of a head's layers, e.g. 512-4096-BN-ReLU-256."""
    words = []
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            words += [str(layer.in_features)] * (not words) + [str(layer.out_features)]
        elif isinstance(layer, nn.BatchNorm1d):
            words.append("BN")
        elif isinstance(layer, nn.ReLU):
            words.append("ReLU")
    return "-".join(words)


def test_all_are_found_under_their_names():
    assert method_names() == ALL
    assert [method_class(name).name for name in ALL] == ALL


def test_an_unknown_name_is_met_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"did you mean simclr\?.*byol.*vicreg"):
        method_class("simclrr")
    with pytest.raises(UsageError, match="Known: barlow_twins, byol"):
        method_class("base")


@pytest.mark.parametrize(
    ("name", "projector"),
    [
        ("byol", "512-4096-BN-ReLU-256"),
        ("simclr", "512-4096-ReLU-256"),
        ("mocov2plus", "512-2048-ReLU-256"),
        ("vicreg", "512-2048-BN-ReLU-2048-BN-ReLU-2048"),
        ("barlow_twins", "512-2048-BN-ReLU-2048-BN-ReLU-2048"),
        ("simsiam", "512-2048-BN-ReLU-2048-BN-ReLU-2048-BN"),
        ("mocov3", "512-4096-BN-ReLU-4096-BN-ReLU-256-BN"),
    ],
)
def test_published_projectors(name, projector):
    assert shape(published(name).projector) == projector


def test_published_predictors_and_settings():
    assert shape(published("byol").predictor) == "256-4096-BN-ReLU-256"
    assert shape(published("simsiam").predictor) == "2048-512-BN-ReLU-2048"
    assert shape(published("mocov3").predictor) == "256-4096-BN-ReLU-256-BN"
    assert method_class("mocov2plus").Settings().queue == 65_536
    assert method_class("mocov2plus").Settings().temperature == 0.2
    assert method_class("mocov3").Settings().temperature == 0.2
    assert method_class("simclr").Settings().temperature == 0.1
    assert [n for n in ALL if method_class(n).momentum] == ["byol", "mocov2plus", "mocov3"]
    weights = {n: method_class(n).distill_weight for n in ALL}
    assert weights == dict.fromkeys(ALL, 1.0) | {"vicreg": 25.0}


@pytest.mark.parametrize("head", ["projector", "predictor"])
def test_mocov3s_heads_have_no_biases_and_end_in_a_plain_norm(head):
    layers = getattr(published("mocov3"), head)
    *inner, last = [layer for layer in layers.modules() if not list(layer.children())]
    assert not list(last.parameters())
    assert all(m.bias is None for m in inner if isinstance(m, nn.Linear))
    assert all(m.affine for m in inner if isinstance(m, nn.BatchNorm1d))


@pytest.mark.parametrize("name", ALL)
def test_settings_refuse_unknown_keys_and_wrong_types(name):
    with pytest.raises(ValidationError):
        method_class(name).Settings.model_validate({"hiden": 3})
    with pytest.raises(ValidationError):
        method_class(name).Settings.model_validate({"hidden": "3"})


@pytest.mark.parametrize(
    ("name", "end"), [("byol", "1.0"), ("mocov2plus", "0.999"), ("mocov3", "1.0")]
)
def test_tau(golden, name, end):
    expected = golden("tau")[f"tau_after_update_tau_0.99_{end}_M100"]
    tau = published(name).tau
    ours = torch.tensor([tau(step / 100) for step in range(101)], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    theirs = [cosine_schedule(step, 101, 0.99, float(end)) for step in range(101)]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-12)


def queue_of(golden):
    entry = golden("moco_queue")
    method = method_class("mocov2plus")
    moco = method(4, method.Settings(hidden=4, dim=3, queue=int(entry["meta/queue_size"]))).double()
    moco.queue.zero_()
    return entry, moco


def test_queue_wraps_in_the_middle_of_a_batch(golden):
    entry, moco = queue_of(golden)
    for keys, queue, pointer in zip(
        entry["keys"], entry["queue_after"], entry["ptr_after"], strict=True
    ):
        moco.remember(tuple(keys), ALONE)
        assert torch.equal(moco.queue, queue.transpose(1, 2))
        # The reference lets the pointer stand at the end, which is the same place as 0.
        assert moco.pointer == pointer % 10


def test_queue_survives_a_batch_larger_than_itself(golden):
    _, moco = queue_of(golden)
    keys = torch.arange(2 * 12 * 3, dtype=torch.float64).reshape(2, 12, 3)
    moco.remember(tuple(keys), ALONE)
    kept = {tuple(row) for row in moco.queue[1].tolist()}
    assert kept == {tuple(row) for row in keys[1, 2:].tolist()}


def test_queue_and_pointer_are_state(golden):
    entry, moco = queue_of(golden)
    moco.remember(tuple(entry["keys"][0]), ALONE)
    _, other = queue_of(golden)
    other.load_state_dict(moco.state_dict())
    assert torch.equal(other.queue, moco.queue)
    assert other.pointer == 4


def test_moco_is_the_mean_of_both_directions(golden):
    """Each view against the other's key and the queue of the other's past keys."""
    entry = golden("moco_loss_func_T0.2")
    method = method_class("mocov2plus")
    moco = method(4, method.Settings(hidden=4, dim=8, queue=24)).double()
    query, key = entry["in/query"], entry["in/key"]
    moco.queue.copy_(torch.stack([-entry["in/queue"].T, entry["in/queue"].T]))
    swapped = moco.loss(query, -query, (-query, key), ALONE) * 2
    # The second direction: -query against the key -query and the negated first queue.
    logits = torch.cat([torch.ones(16, 1), query @ entry["in/queue"]], 1) / 0.2
    back = -logits.log_softmax(1)[:, 0].mean()
    torch.testing.assert_close(swapped - back, entry["value"], rtol=1e-9, atol=1e-9)


def test_byol_is_the_sum_of_both_directions(golden):
    entry = golden("byol_loss_func")
    method = method_class("byol")
    byol = method(4, method.Settings(hidden=4, dim=8, predictor_hidden=4)).double()
    byol.predictor = nn.Identity()
    p, z = entry["in/p"], entry["in/z"]
    torch.testing.assert_close(
        byol.loss(p, p, (z, z), ALONE), 2 * entry["value"], rtol=1e-9, atol=1e-9
    )


def test_mocov3_is_the_sum_of_both_directions_and_stops_the_keys():
    """The first view meets its own key at cos 1, the second at cos -1, all others at cos 0."""
    method = method_class("mocov3")
    moco = method(4, method.Settings(hidden=4, dim=6, predictor_hidden=4)).double()
    moco.predictor = nn.Identity()
    keys = torch.eye(6, dtype=torch.float64)[:5].requires_grad_()
    z1, z2 = 3 * keys.detach(), -2 * keys.detach()
    turned = keys.detach().roll(1, 0)
    alike = math.log(1 + 4 * math.exp(-5))
    opposite = math.log(1 + 4 * math.exp(5))
    loss = moco.loss(z1.requires_grad_(), z2, (keys, keys), ALONE)
    assert loss.item() == pytest.approx(0.4 * (alike + opposite), rel=1e-12)
    loss.backward()
    assert z1.grad.abs().sum() > 0
    assert keys.grad is None
    # Across the views: the first view's queries meet the second view's keys.
    apart = moco.loss(z1, 2 * turned, (turned, keys), ALONE).item()
    assert apart == pytest.approx(0.4 * 2 * alike, rel=1e-12)


def test_simsiam_is_the_mean_of_both_directions_and_stops_the_targets(golden):
    entry = golden("byol_loss_func")
    method = method_class("simsiam")
    simsiam = method(4, method.Settings(hidden=4, dim=8, predictor_hidden=4)).double()
    simsiam.predictor = nn.Identity()
    p, z = entry["in/p"].clone().requires_grad_(), entry["in/z"].clone().requires_grad_()
    loss = simsiam.loss(p, z, None, ALONE)
    torch.testing.assert_close(loss, entry["value"] / 2 - 1, rtol=1e-9, atol=1e-9)
    loss.backward()
    torch.testing.assert_close(p.grad, entry["grad/p"] / 4, rtol=1e-8, atol=1e-8)


NEW_METHOD = '''
"""Align: bring the views together, and nothing else."""

import torch.nn.functional as F
from pydantic import Field

from kaizen_dist.config.base import Section
from kaizen_dist.learner.heads import mlp
from kaizen_dist.learner.methods.base import Method


class AlignSettings(Section):
    dim: int = Field(4, ge=1)


class Align(Method):
    Settings = AlignSettings

    def __init__(self, features, settings):
        super().__init__()
        self.projector = mlp(features, settings.dim, batch_norm=False)
        self.distill_dim = settings.dim

    def loss(self, z1, z2, keys, gather):
        return F.mse_loss(z1, z2)

    def distill(self, p1, p2, old1, old2, gather):
        return (F.mse_loss(p1, old1) + F.mse_loss(p2, old2)) / 2
'''


def test_a_further_method_is_one_file(tmp_path, monkeypatch, batch):
    (tmp_path / "align.py").write_text(NEW_METHOD)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "align" in method_names()
    config = small_config("byol").model_copy(update={"method": "align", "ssl": {"dim": 6}})
    learner = Learner(config, 5).double()
    learner.begin_task(first=False)
    losses = learner(*batch)
    losses.total.backward()
    learner.after_step(0.0)
    assert learner.method.name == "align"
    assert losses.ssl.item() > 0
    assert losses.kd_features.item() > 0
    assert learner.method.projector[0].weight.grad.shape == (6, 512)
