"""LARS and the schedule against the reference implementation; groups get their own rates."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from kaizen_dist.config.schema import OptimConfig
from kaizen_dist.engine.optim import (
    LARS,
    LearningRates,
    build_optimizer,
    learning_rates,
    position,
    set_learning_rates,
)

NAMES = ("w", "b", "zero_w", "cls_w", "cls_b")


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "optim.npz", allow_pickle=False) as file:
        return {k: torch.from_numpy(np.array(file[k])) for k in file.files}


@pytest.mark.parametrize("variant", ["published", "noclip", "noexclude"])
def test_six_steps_of_lars(golden, variant):
    entry = {
        k.removeprefix(f"lars_{variant}/"): v
        for k, v in golden.items()
        if k.startswith(f"lars_{variant}/")
    }
    params = {name: nn.Parameter(entry[f"p0/{name}"].clone()) for name in NAMES}
    groups = [
        {"params": [params[n] for n in NAMES[:3]], "weight_decay": entry["meta/wd_group0"].item()},
        {"params": [params[n] for n in NAMES[3:]], "weight_decay": entry["meta/wd_group1"].item()},
    ]
    optimizer = LARS(
        groups,
        lr=1.0,
        momentum=entry["meta/momentum"].item(),
        eta=entry["meta/eta"].item(),
        clip=bool(entry["meta/clip"]),
        exclude_1d=bool(entry["meta/exclude"]),
    )
    for step in range(6):
        for name in NAMES:
            params[name].grad = entry[f"grads/{name}"][step].clone()
        optimizer.param_groups[0]["lr"] = entry["lr"][step].item()
        optimizer.param_groups[1]["lr"] = entry["lr_cls"][step].item()
        optimizer.step()
        for name in NAMES:
            expected = entry[f"params_after_step/{name}"][step]
            torch.testing.assert_close(params[name].data, expected, rtol=0, atol=1e-12)
            assert torch.equal(params[name].grad, entry[f"grads/{name}"][step])


def model_and_groups():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    return model, [
        {"role": "model", "params": list(model[0].parameters()), "weight_decay": 0.1},
        {"role": "classifier", "params": list(model[1].parameters()), "weight_decay": 0.0},
    ]


def run(model, optimizer, steps):
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(6, 4, generator=generator)).square().sum().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_lars_state_goes_there_and_back():
    model, groups = model_and_groups()
    optimizer = build_optimizer(groups, OptimConfig(), 256)
    run(model, optimizer, 2)
    twin, twin_groups = model_and_groups()
    twin.load_state_dict(model.state_dict())
    other = build_optimizer(twin_groups, OptimConfig(lr=0.1), 256)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for ours, theirs in zip(run(twin, other, 3), run(model, optimizer, 3), strict=True):
        assert torch.equal(ours, theirs)


def test_lars_leaves_parameters_without_a_gradient():
    model, groups = model_and_groups()
    optimizer = build_optimizer(groups, OptimConfig(), 256)
    model[1].requires_grad_(False)
    before = model[1].weight.clone()
    run(model, optimizer, 2)
    assert torch.equal(model[1].weight, before)
    assert model[1].weight not in optimizer.state


@pytest.mark.parametrize(("name", "kind"), [("lars", LARS), ("sgd", SGD), ("adamw", AdamW)])
def test_each_optimizer_by_name(name, kind):
    optim = OptimConfig(name=name, lr=0.4, classifier_lr=0.05, momentum=0.8, eta=0.01)
    model, groups = model_and_groups()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(groups, optim, 512)
    assert type(optimizer) is kind
    assert [g["lr"] for g in optimizer.param_groups] == [0.8, 0.05]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    if name != "adamw":
        assert [g["momentum"] for g in optimizer.param_groups] == [0.8, 0.8]
    for old, new in zip(before, run(model, optimizer, 1), strict=True):
        assert not torch.equal(old, new)


def test_the_published_schedule(golden):
    expected = golden["warmup_cosine_lr/lr_per_epoch"]
    for column, base in enumerate(golden["warmup_cosine_lr/base_lr"].tolist()):
        optim = OptimConfig(lr=base, classifier_lr=base)
        ours = [learning_rates(optim, 256, epoch, 500) for epoch in range(500)]
        for rates, lr in zip(ours, expected[:, column].tolist(), strict=True):
            assert rates == pytest.approx((lr, lr), rel=1e-10, abs=1e-15)


def test_a_short_schedule(golden):
    expected = golden["warmup_cosine_lr_short/lr_per_epoch"].tolist()
    optim = OptimConfig(lr=1.0, classifier_lr=0.1, warmup_epochs=3)
    for epoch, rates in enumerate(expected):
        assert learning_rates(optim, 256, epoch, 12) == pytest.approx(tuple(rates), rel=1e-12)


def test_only_the_models_rate_is_scaled_and_only_if_asked():
    optim = OptimConfig(lr=0.3, classifier_lr=0.1, warmup_epochs=0)
    assert learning_rates(optim, 1024, 0, 10) == pytest.approx((1.2, 0.1))
    plain = optim.model_copy(update={"scale_lr": False})
    assert learning_rates(plain, 1024, 0, 10) == pytest.approx((0.3, 0.1))


@pytest.mark.parametrize("warmup", [0, 0.5, 1, 1.5, 2, 5])
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_rates_climb_to_the_peak_and_fall_from_it(warmup, interval):
    optim = OptimConfig(warmup_epochs=warmup, interval=interval, min_lr=0.001)
    places = [position(step, 4, interval) for step in range(40)]
    rates = [learning_rates(optim, 256, place, 10).model for place in places]
    top = rates.index(max(rates))
    assert all(a <= b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[top:]))
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[0] == (1.0 if warmup == 0 else optim.warmup_start_lr)
    assert optim.min_lr < rates[-1] < 0.1


def test_position():
    assert [position(s, 4, "epoch") for s in (0, 3, 4, 9)] == [0, 0, 1, 2]
    assert [position(s, 4, "step") for s in (0, 3, 4, 9)] == [0, 0.75, 1, 2.25]


def test_rates_are_set_by_role():
    _, groups = model_and_groups()
    optimizer = build_optimizer(groups[::-1], OptimConfig(), 256)
    set_learning_rates(optimizer, LearningRates(model=0.7, classifier=0.2))
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.7]
