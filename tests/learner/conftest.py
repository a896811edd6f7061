"""Values of the paper's reference implementation on fixed inputs, and small learners."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_learners import small_config, tiny_backbone
from torch import Tensor

from kaizen_dist.learner.learner import Learner

GOLDEN = Path(__file__).parents[1] / "golden" / "learner.npz"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Entry:
    """One function of the reference: inputs, value and derivatives, float64."""

    arrays: dict[str, np.ndarray]

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def under(self, folder: str) -> dict[str, Tensor]:
        start = f"{folder}/"
        return {k.removeprefix(start): self[k] for k in self.arrays if k.startswith(start)}

    def inputs(self) -> dict[str, Tensor]:
        """Fresh leaves."""
        return {k: v.clone().requires_grad_() for k, v in self.under("in").items()}

    def agrees(self, value: Tensor, **leaves: Tensor) -> None:
        """Hold a value, and its gradient by each of the leaves, against the reference's."""
        torch.testing.assert_close(value, self["value"], rtol=1e-9, atol=1e-9)
        value.backward()
        for name, leaf in leaves.items():
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            torch.testing.assert_close(grad, self[f"grad/{name}"], rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Entry]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        arrays = {k: np.array(file[k]) for k in file.files}

    def entry(name: str) -> Entry:
        found = {
            k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")
        }
        assert found, f"no golden entry {name}"
        return Entry(found)

    return entry


@pytest.fixture
def small_learner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Learner]:
    """A float64 learner of five classes, narrow throughout; keywords are sections."""
    monkeypatch.setattr("kaizen_dist.learner.first_weights.build_backbone", tiny_backbone)

    def build(method: str, **sections: dict[str, Any]) -> Learner:
        return Learner(small_config(method, **sections), 5).double()

    return build


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Two views of eight images and their labels, three of them hidden."""
    views = torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    return views, torch.tensor([0, -1, 2, 4, -1, 1, -1, 3])
