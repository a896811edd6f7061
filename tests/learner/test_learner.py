"""The learner: its four terms, where their gradients go, and its state."""

import copy

import pytest
import torch
from small_learners import SMALL_SSL, small_config

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.learning import OptimConfig
from kaizen_dist.config.schema import Config
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.terms import TERMS, Losses

ALL = sorted(SMALL_SSL)
SWITCHES = [
    (False, False, False),
    (True, False, False),
    (False, True, False),
    (True, False, True),
    (True, True, False),
    (True, True, True),
]


def moved(learner, amount=1.05):
    """The student, a little away from its teacher."""
    with torch.no_grad():
        for p in learner.backbone.parameters():
            p.mul_(amount)
    return learner


def reached(learner):
    """Children whose parameters have a gradient other than 0, the method's parts by name."""
    found = set()
    for key, p in learner.named_parameters():
        if p.grad is not None and p.grad.abs().sum() > 0:
            parts = key.split(".")
            found.add(parts[1] if parts[0] == "method" else parts[0])
    return found


@pytest.mark.parametrize(("classifier", "features", "soft"), SWITCHES)
@pytest.mark.parametrize("name", ALL)
def test_each_term_by_its_switch(small_learner, batch, name, classifier, features, soft):
    learner = small_learner(
        name,
        classifier={"enabled": classifier},
        distill={"features": features, "classifier": soft},
    )
    for first in (True, False):
        learner.begin_task(first=first)
        moved(learner)
        losses = learner(*batch)
        on = {
            "ssl": True,
            "classifier": classifier,
            "kd_features": features and not first,
            "kd_classifier": soft and not first,
            "supervised": False,
            "kd_supervised": False,
        }
        assert {t: getattr(losses, t).item() != 0 for t in TERMS} == on
        assert torch.isfinite(losses.stack()).all()
        total = sum(getattr(losses, t) for t in TERMS)
        torch.testing.assert_close(losses.total, total)
        learner.zero_grad()
        losses.total.backward()
        # Data parallelism waits for the gradient of every parameter that is trained.
        for p in learner.parameters():
            assert (p.grad is not None) == p.requires_grad
            assert p.grad is None or torch.isfinite(p.grad).all()
        learner.after_step(0.5)


@pytest.mark.parametrize("name", ALL)
def test_where_each_terms_gradient_goes(small_learner, batch, name):
    learner = small_learner(name)
    learner.begin_task(first=False)
    moved(learner)
    predictor = {"predictor"} & {key for key, _ in learner.method.named_children()}
    expected = {
        "ssl": {"backbone", "projector"} | predictor,
        "classifier": {"classifier"},
        "kd_features": {"backbone", "projector", "distiller"},
        "kd_classifier": {"classifier"},
    }
    for term, parts in expected.items():
        learner.zero_grad(set_to_none=True)
        getattr(learner(*batch), term).backward()
        assert reached(learner) == parts, term


def test_weights_of_the_terms(small_learner, batch):
    def losses(name, **sections):
        learner = small_learner(name, **sections)
        learner.begin_task(first=False)
        return moved(learner)(*batch)

    plain = losses("vicreg")
    heavy = losses(
        "vicreg",
        classifier={"weight": 3.0},
        distill={"features_weight": 5.0, "classifier_weight": 8.0},
    )
    torch.testing.assert_close(heavy.classifier, 3 * plain.classifier)
    torch.testing.assert_close(heavy.kd_features, plain.kd_features / 5)  # 25 -> 5
    torch.testing.assert_close(heavy.kd_classifier, 4 * plain.kd_classifier)  # 2 -> 8
    torch.testing.assert_close(heavy.ssl, plain.ssl)


def test_a_batch_without_labels(small_learner, batch):
    learner = small_learner("byol")
    losses = learner(batch[0], torch.full((8,), -1))
    losses.total.backward()
    assert losses.classifier.item() == 0
    assert torch.isfinite(losses.total)
    assert all(p.grad is not None for p in learner.classifier.parameters())


def test_the_teacher_is_taken_when_a_task_begins_and_only_then(small_learner, batch):
    learner = small_learner("byol")
    assert learner.teacher is None
    learner.begin_task(first=False)
    taken = learner.teacher
    student = copy.deepcopy(learner.backbone.state_dict())
    moved(learner)(*batch)
    assert learner.teacher is taken
    for key, value in taken.backbone.state_dict().items():
        assert torch.equal(value, student[key])
    learner.begin_task(first=False)
    assert learner.teacher is not taken
    learner.begin_task(first=True)
    assert learner.teacher is None


def test_no_teacher_where_there_is_nothing_to_distil(small_learner):
    learner = small_learner("byol", distill={"features": False, "classifier": False})
    learner.begin_task(first=False)
    assert learner.teacher is None
    assert learner.distiller is None
    learner = small_learner("byol", distill={"features": False})
    learner.begin_task(first=False)
    assert learner.teacher.projector is None
    learner = small_learner("byol", distill={"classifier": False})
    learner.begin_task(first=False)
    assert learner.teacher.classifier is None


@pytest.mark.parametrize("batch_stats", [False, True])
@pytest.mark.parametrize("name", ["byol", "mocov2plus"])
def test_state_goes_there_and_back(small_learner, batch, name, batch_stats):
    """A fresh learner goes on, bit for bit, where a saved one stood in its second task."""

    def step(learner, number):
        optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.01)
        losses = learner(*batch)
        losses.total.backward()
        optimizer.step()
        learner.after_step(number / 4)
        learner.zero_grad()
        return losses.stack()

    learner = small_learner(name, teacher={"batch_stats": batch_stats})
    step(learner, 0)
    learner.begin_task(first=False)
    step(learner, 0)
    fresh = small_learner(name, teacher={"batch_stats": batch_stats}, train={"seed": 7})
    fresh.begin_task(first=False)
    fresh.load_state_dict(copy.deepcopy(learner.state_dict()))
    for number in (1, 2):
        assert torch.equal(step(fresh, number), step(learner, number))
    now, then = fresh.state_dict(), learner.state_dict()
    assert now.keys() == then.keys()
    assert all(torch.equal(now[key], then[key]) for key in now)


def test_keys_are_remembered_after_the_loss_and_only_in_training(small_learner, batch):
    learner = small_learner("mocov2plus")
    first = learner(*batch)
    assert learner.method.pointer == 8
    learner.eval()
    learner(*batch)
    assert learner.method.pointer == 8
    learner.train()
    second = learner(*batch)
    assert learner.method.pointer == 16
    # Both graphs survive the queue's change, and the second saw other negatives.
    (first.ssl + second.ssl).backward()
    assert first.ssl.item() != second.ssl.item()


def test_evaluation_changes_nothing_and_must_be_asked_for(small_learner, batch):
    learner = small_learner("mocov2plus")
    with pytest.raises(RuntimeError, match="eval"):
        learner.embed(batch[0][0])
    learner.eval()
    before = copy.deepcopy(learner.state_dict())
    assert learner.embed(batch[0][0]).shape == (8, 16)
    assert learner.logits(batch[0][0]).shape == (8, 5)
    assert all(torch.equal(v, before[k]) for k, v in learner.state_dict().items())


def test_no_logits_without_a_classifier(small_learner, batch):
    off = {"classifier": {"enabled": False}, "distill": {"classifier": False}}
    with pytest.raises(UsageError, match=r"classifier\.enabled"):
        small_learner("byol", **off).eval().logits(batch[0][0])


def test_parameter_groups(small_learner):
    learner = small_learner("byol")
    optim = OptimConfig(weight_decay=0.5)
    model, classifier = learner.parameter_groups(optim)
    assert (model["role"], model["weight_decay"]) == ("model", 0.5)
    assert (classifier["role"], classifier["weight_decay"]) == ("classifier", 0.0)
    assert classifier["params"] == list(learner.classifier.parameters())
    own = [*learner.backbone.parameters(), *learner.method.parameters()]
    assert {id(p) for p in model["params"]} == {id(p) for p in own}
    learner.begin_task(first=False)
    own += learner.distiller.parameters()
    model, _ = learner.parameter_groups(optim)
    assert {id(p) for p in model["params"]} == {id(p) for p in own}
    off = {"classifier": {"enabled": False}, "distill": {"classifier": False}}
    assert len(small_learner("byol", **off).parameter_groups(optim)) == 1


@pytest.mark.parametrize(
    ("backbone", "layers", "top"),
    [
        ("resnet14", ["conv1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.bias"], 6),
        ("vit_n_4", ["conv_proj.weight", "encoder.layers.encoder_layer_0.mlp.0.bias"], 6),
        ("vit_n_4", ["encoder.pos_embedding", None, "encoder.ln.weight"], 6),
    ],
)
def test_layers_have_rates_of_their_own(backbone, layers, top):
    learner = Learner(small_config("simclr", model={"backbone": backbone, "stem": "auto"}), 5)
    groups = learner.parameter_groups(OptimConfig(layer_decay=0.5))
    roles = [group["role"] for group in groups]
    assert roles == ["model", *["backbone"] * (top + 1), "classifier"]
    named = {id(p): name for name, p in learner.backbone.network.named_parameters()}
    scales = {named[id(p)]: g["lr_scale"] for g in groups[1:-1] for p in g["params"]}
    assert scales.keys() == set(named.values())
    for place, name in enumerate(layers):
        if name:
            layer = top if place == 2 else place
            assert scales[name] == 0.5 ** (top + 1 - layer), name
    everything = [id(p) for g in groups for p in g["params"]]
    assert len(everything) == len(set(everything))
    assert set(everything) == {id(p) for p in learner.parameters() if p.requires_grad}


def test_first_weights_depend_on_the_seed_and_the_part_alone():
    def weights(**sections):
        torch.manual_seed(sections.pop("noise", 0))
        return Learner(small_config("simclr", **sections), 5).state_dict()

    whole, other_noise = weights(), weights(noise=1)
    assert all(torch.equal(v, other_noise[k]) for k, v in whole.items())
    lean = weights(classifier={"enabled": False}, distill={"features": False, "classifier": False})
    assert all(torch.equal(v, whole[k]) for k, v in lean.items())
    assert lean.keys() < whole.keys()
    key = "backbone.network.conv1.weight"
    assert not torch.equal(whole[key], weights(train={"seed": 1})[key])


def test_building_leaves_torchs_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Learner(small_config("simclr"), 5)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("backbone", ["resnet18", "vit_ti_4"])
def test_a_step_with_a_real_backbone(batch, backbone):
    config = small_config("byol", model={"backbone": backbone})
    learner = Learner(config, 5)
    learner.begin_task(first=False)
    losses = learner(batch[0].float(), batch[1])
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert torch.isfinite(losses.stack()).all()
    assert all(p.grad is not None for p in learner.parameters() if p.requires_grad)


def test_a_frozen_patch_stays_bit_for_bit_and_all_else_moves(batch):
    """In the student and in the momentum network."""
    model = {"backbone": "vit_n_2", "frozen_patch": True}
    learner = Learner(small_config("mocov3", model=model), 5)
    learner.begin_task(first=False)
    groups = learner.parameter_groups(OptimConfig(weight_decay=0.1))
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    before = copy.deepcopy(dict(learner.named_parameters()))
    for step in range(2):
        optimizer.zero_grad()
        learner(batch[0].float(), batch[1]).total.backward()
        optimizer.step()
        learner.after_step(step / 4)
    stayed = {n for n, p in learner.named_parameters() if torch.equal(p, before[n])}
    patch = [f"backbone.network.conv_proj.{part}" for part in ("weight", "bias")]
    expected = {f"{who}{name}" for who in ("", "momentum.") for name in patch}
    assert {name for name in stayed if not name.startswith("teacher.")} == expected
    for name in patch:
        for who in ("momentum.", "teacher."):
            assert torch.equal(learner.get_parameter(who + name), learner.get_parameter(name))


def test_a_frozen_patch_is_the_one_that_would_be_trained():
    """The same draws: every first weight is that of a run without it."""
    frozen, trained = (
        Learner(small_config("mocov3", model={"backbone": "vit_n_4", "frozen_patch": on}), 5)
        for on in (True, False)
    )
    theirs = trained.state_dict()
    assert frozen.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in frozen.state_dict().items())


def test_published_heads():
    config = Config.model_validate({"method": "simclr", "model": {"backbone": "resnet10"}})
    learner = Learner(config, 100)
    assert [tuple(p.shape) for p in learner.classifier.parameters()] == [
        (1000, 512),
        (1000,),
        (100, 1000),
        (100,),
    ]
    shapes = [tuple(p.shape) for p in learner.distiller.parameters() if p.ndim == 2]
    assert shapes == [(2048, 256), (256, 2048)]


def test_losses_stack_in_the_order_of_their_names():
    losses = Losses(*(torch.tensor(float(i), requires_grad=True) for i in range(7)))
    learning = ("ssl", "classifier", "kd_features", "kd_classifier")
    assert (*learning, "supervised", "kd_supervised") == TERMS
    assert Losses.names() == ["total", *TERMS]
    assert losses.stack().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert not losses.stack().requires_grad


def test_supervised_fine_tuning_is_cross_entropy_through_the_backbone(small_learner, batch):
    """No loss of the method, no stopped gradient: what torch's cross-entropy gives alone."""
    off = {"features": False, "classifier": False}
    switches = {"classifier": {"stop_gradient": False}, "ssl_weight": 0.0, "distill": off}
    learner = small_learner("byol", **switches)
    views, labels = batch
    losses = learner(views, labels)
    losses.total.backward()
    assert losses.ssl.item() == 0
    assert reached(learner) == {"backbone", "classifier"}
    ours = [p.grad.clone() for p in learner.backbone.parameters()]
    learner.zero_grad()
    cross_entropy = torch.nn.CrossEntropyLoss(ignore_index=-1)
    by_hand = sum(cross_entropy(learner.classifier(learner.backbone(v)), labels) for v in views)
    assert losses.total.item() == pytest.approx(by_hand.item())
    by_hand.backward()
    for grad, parameter in zip(ours, learner.backbone.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad)


def test_a_backbone_that_nothing_teaches_is_refused():
    with pytest.raises(ValueError, match=r"supervise\.weight=1"):
        small_config("byol", ssl_weight=0.0, distill={"features": False, "classifier": True})
    small_config("byol", ssl_weight=0.0, distill={"features": True})


def test_logit_adjustment_is_cross_entropy_on_shifted_logits(small_learner, batch):
    """Counts of the task's labels so far, this batch's included; a class not met counts as one."""
    learner = small_learner("simclr", classifier={"logit_adjustment": 0.7})
    views, labels = batch
    learner(views, labels)
    found = learner(views, labels).classifier
    seen = torch.tensor([2.0, 2, 2, 2, 2]).double()
    assert learner.labels_seen.tolist() == seen.tolist()
    skewed = torch.tensor([0, 0, 0, -1, -1, 1, -1, -1])
    found = learner(views, skewed).classifier
    seen = torch.tensor([5.0, 3, 2, 2, 2]).double()
    assert learner.labels_seen.tolist() == seen.tolist()
    logits = [learner.classifier(learner.backbone(v)) for v in views]
    shifted = [out + 0.7 * (seen / 14).log() for out in logits]
    by_hand = sum(torch.nn.functional.cross_entropy(s, skewed, ignore_index=-1) for s in shifted)
    assert found.item() == pytest.approx(by_hand.item())
    assert "labels_seen" in learner.state_dict()
    learner.eval()
    learner(views, labels)
    assert learner.labels_seen.tolist() == seen.tolist(), "only training counts"
    learner.begin_task(first=False)
    assert learner.labels_seen.sum() == 0


def test_without_the_switches_the_state_is_as_it_was(small_learner):
    names = small_learner("simclr").state_dict().keys()
    assert not {"labels_seen", "class_means"} & names
