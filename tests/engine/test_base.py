"""The digest of a state."""

import torch

from kaizen_dist.engine.base import digest


def test_the_digest_is_of_every_tensor_in_any_order():
    state = {"a": torch.ones(3), "b": torch.tensor(5), "c": torch.zeros(0)}
    expected = digest(state.items())
    assert expected == digest(reversed(state.items()))
    assert expected != digest((state | {"a": torch.ones(3).double()}).items())
    assert expected != digest((state | {"a": torch.ones(3, 1)}).items())
    assert expected != digest([*state.items(), ("d", torch.zeros(0))])
    changed = torch.ones(3)
    changed[2] = 1 + 1e-7
    assert expected != digest((state | {"a": changed}).items())
