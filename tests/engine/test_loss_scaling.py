"""fp16's bad steps are left out without the host looking: torch's own scaler, which looks, says
what is right."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from kaizen_dist.engine.optim import LARS, skip_on_the_device

BAD = (0, 1, 4)
"""Steps whose gradients are infinite; the scale of a fresh scaler makes the first ones such."""

OPTIMIZERS = {
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9, foreach=True),
    "lars": lambda params: LARS([{"params": params, "weight_decay": 0.01}], lr=0.1, momentum=0.9),
    "adamw": lambda params: AdamW(params, lr=0.1, fused=True),
}


def learnt(name: str, on_device: bool, monkeypatch) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    if on_device:
        skip_on_the_device(optimizer)
    for step in range(7):
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(model(torch.randn(6, 4)).square().sum()).backward()
        if step in BAD:
            model[0].weight.grad[0, 0] = torch.inf
        with monkeypatch.context() as patched:
            if on_device:
                patched.setattr(torch.Tensor, "item", waited)
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    states = [t for p in model.parameters() for t in optimizer.state[p].values()]
    tensors = [*model.state_dict().values(), *states, torch.tensor(scaler.get_scale())]
    return {str(i): torch.as_tensor(t) for i, t in enumerate(tensors) if t is not None}


def waited(self):
    raise AssertionError("the host read a number of the device")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bad_steps_are_left_out_as_torch_leaves_them_out(name, monkeypatch):
    ours, theirs = learnt(name, True, monkeypatch), learnt(name, False, monkeypatch)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert tensor.isfinite().all()
        assert torch.equal(ours[key], tensor)
