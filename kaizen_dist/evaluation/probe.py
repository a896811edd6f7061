"""A linear probe: the accuracy of a linear classifier on frozen features.

The probe is multinomial logistic regression on standardised features, a convex problem with one
solution: it is solved by L-BFGS in float64 from zero, so that it is deterministic and needs no
tuning.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_SCALE_FLOOR = 1e-12
"""Below this, relative to its mean, the deviation of a feature is rounding: it is constant."""
_ITERATIONS = 300


@dataclass(frozen=True)
class Probe:
    """A fitted probe. `classes` [c] are the labels it predicts, `weight` [c, d], `bias` [c]."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """float64 [n, c] for features [n, d]; softmax over c gives the probabilities."""
        return (features.double() - self.mean) / self.scale @ self.weight.T + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """The most probable label of every row, int64 [n]."""
        return self.classes[self.logits(features).argmax(dim=1)]


def fit_probe(features: Tensor, labels: Tensor, l2: float = 1e-3) -> Probe:
    """Minimises mean cross-entropy + l2/2 |weight|^2 over `features` [n, d], `labels` [n].

    Same solution as scikit-learn's LogisticRegression(C=1/(n l2)) behind a StandardScaler.
    A class without a label is not a class of the probe. Holds n * d float64 values.
    """
    _check(features, labels)
    features = features.double()
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    constant = deviation <= _SCALE_FLOOR * (1 + mean.abs())
    scale = torch.where(constant, torch.ones_like(deviation), deviation)
    inputs = (features - mean) / scale
    classes, targets = torch.unique(labels.long(), return_inverse=True)
    # Evaluation may well be called without gradients; the probe needs its own.
    with torch.inference_mode(False), torch.enable_grad():
        inputs, targets = inputs.clone(), targets.clone()
        weight = inputs.new_zeros(len(classes), inputs.shape[1], requires_grad=True)
        bias = inputs.new_zeros(len(classes), requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=_ITERATIONS,
            history_size=20,
            tolerance_grad=1e-9,
            tolerance_change=1e-15,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(inputs @ weight.T + bias, targets)
            loss = loss + 0.5 * l2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(objective)
    return Probe(mean, scale, weight.detach(), bias.detach(), classes)


def linear_probe(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    num_classes: int,
    l2: float = 1e-3,
) -> float:
    """Top-1 accuracy, a fraction, on the test set of a probe fitted on the training set.

    `features` [n, d], `labels` [n] in [0, num_classes), the test set alike [m, d], [m]. A
    test image of a class without a training label counts as wrong. Raises ValueError for
    shapes that do not fit, empty sets, labels out of range and features that are not finite.
    """
    _check(features, labels)
    _check(test_features, test_labels)
    for name, given in (("training", labels), ("test", test_labels)):
        if int(given.min()) < 0 or int(given.max()) >= num_classes:
            raise ValueError(f"the {name} labels do not all lie in [0, {num_classes})")
    probe = fit_probe(features, labels, l2)
    return float((probe.predict(test_features) == test_labels).double().mean())


def _check(features: Tensor, labels: Tensor) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"features {tuple(features.shape)} and labels {tuple(labels.shape)} must be "
            "[n, d] and [n] with n > 0"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError("the features hold values that are not finite: the backbone diverged")
