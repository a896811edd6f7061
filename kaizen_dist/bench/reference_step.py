"""The step as one would write it down: what the engines' is measured against, and held to.

Every network sees every view by itself, in torch's default layout, in float32; the optimizer and
the momentum network go from parameter to parameter. It has the weights, the formulas of the losses
and the schedule of our learner, and nothing else of ours. One process.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer

from kaizen_dist.bench.step_timer import BACKWARD, MOMENTUM, OPTIMIZER, STUDENT, TEACHER, Clock
from kaizen_dist.config import Config
from kaizen_dist.config.schema import OptimConfig
from kaizen_dist.engine.optim import learning_rates, set_learning_rates
from kaizen_dist.engine.options import micro_batches
from kaizen_dist.learner.backbone import Backbone
from kaizen_dist.learner.distill import soft_label_loss
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.losses import classification_loss
from kaizen_dist.learner.methods.base import Pair
from kaizen_dist.learner.terms import Losses

EAGER = "eager"


class EagerStep:
    """Steps a learner of its second task, whose teacher is taken from it as it is."""

    def __init__(self, config: Config, learner: Learner, clock: Clock) -> None:
        self.config, self.learner, self.clock = config, learner, clock
        learner.begin_task(first=False)
        for module in learner.modules():
            if isinstance(module, Backbone):
                module.layout = torch.contiguous_format
        groups = learner.parameter_groups(config.optim)
        self.optimizer = _plain_optimizer(groups, config.optim)

    def step(self, views: Tensor, labels: Tensor, number: int, total: int) -> Losses:
        """One update on views [2, n, 3, s, s] and labels [n]; the first epoch's learning rates."""
        config, clock, learner = self.config, self.clock, self.learner
        learner.train()
        rates = learning_rates(config.optim, config.train.batch_size, 0, config.train.epochs)
        set_learning_rates(self.optimizer, rates)
        self.optimizer.zero_grad()
        parts = micro_batches(views, labels, config.lanes, config.train.accumulate)
        taken = []
        for part in parts:
            clock.mark(STUDENT)
            losses = self.losses(*part)
            clock.mark(BACKWARD)
            (losses.total / len(parts)).backward()
            taken.append(losses.stack())
        clock.mark(OPTIMIZER)
        if config.optim.clip_norm is not None:
            clip_grad_norm_(
                [p for p in learner.parameters() if p.requires_grad], config.optim.clip_norm
            )
        self.optimizer.step()
        if learner.momentum is not None:
            self._follow(learner.method.tau(number / total))
        return Losses(*torch.stack(taken).mean(0))

    def losses(self, views: Tensor, labels: Tensor) -> Losses:
        """Those of `Learner.forward` on views [2, n, 3, s, s] and labels [n]."""
        learner, config, gather = self.learner, self.config, self.learner.gather
        features = learner.backbone(views[0]), learner.backbone(views[1])
        z = learner.method.projector(features[0]), learner.method.projector(features[1])
        keys = self._keys(views)
        old, old_logits = self._taught(views)
        ssl = config.ssl_weight * learner.method.loss(*z, keys, gather)
        if keys is not None:
            learner.method.remember(keys, gather)
        classifier = kd_features = kd_classifier = z[0].new_zeros(())
        if learner.classifier is not None:
            seen = (f.detach() if config.classifier.stop_gradient else f for f in features)
            logits = torch.stack([learner.classifier(f) for f in seen])
            learn = classification_loss(self._adjusted(logits, labels), labels, gather)
            classifier = config.classifier.weight * learn
            if old_logits is not None:
                first, second = learner.distilled_rows(logits, 1)
                keep = soft_label_loss(first, second, *old_logits)
                kd_classifier = config.distill.classifier_weight * keep
        if learner.distiller is not None and old is not None:
            chosen = config.distill.features_weight
            weight = learner.method.distill_weight if chosen is None else chosen
            held = learner.distilled_rows(z[0], 0), learner.distilled_rows(z[1], 0)
            kd_features = weight * learner.distiller(learner.method, held, old, gather)
        total = ssl + classifier + kd_features + kd_classifier
        return Losses(total, ssl, classifier, kd_features, kd_classifier)

    def _adjusted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits plus tau log(share) of each class among all labels met in the task."""
        met, tau = self.learner.labels_seen, self.config.classifier.logit_adjustment
        if met is None:
            return logits
        met += torch.bincount(labels[labels >= 0], minlength=len(met))
        often = met.clamp(min=1).to(logits.dtype)
        return logits + tau * torch.log(often / often.sum())

    def _keys(self, views: Tensor) -> Pair | None:
        if (network := self.learner.momentum) is None:
            return None
        with self.clock.part(MOMENTUM), torch.no_grad():
            first, second = (network.projector(network.backbone(view)) for view in views)
        return first, second

    def _taught(self, views: Tensor) -> tuple[Pair | None, Pair | None]:
        if (teacher := self.learner.teacher) is None:
            return None, None
        with self.clock.part(TEACHER), torch.no_grad():
            features = [teacher.backbone(v) for v in self.learner.distilled_rows(views, 1)]
            return _through(teacher.projector, features), _through(teacher.classifier, features)

    @torch.no_grad()
    def _follow(self, tau: float) -> None:
        learner = self.learner
        assert learner.momentum is not None
        student = [*learner.backbone.parameters(), *learner.method.projector.parameters()]
        for own, theirs in zip(learner.momentum.parameters(), student, strict=True):
            own.mul_(tau).add_(theirs, alpha=1 - tau)


def _through(head: nn.Module | None, features: list[Tensor]) -> Pair | None:
    return None if head is None else (head(features[0]), head(features[1]))


class _LoopedLARS(SGD):
    """`engine.optim.LARS` from parameter to parameter."""

    eta = 0.02

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            _rescale(group["params"], group["lr"], group["weight_decay"], self.eta)
            group["weight_decay"] = 0.0
        super().step()
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay


def _rescale(params: Iterable[Tensor], lr: float, decay: float, eta: float) -> None:
    for p in params:
        if p.grad is None or p.ndim <= 1:
            continue
        w_norm, g_norm = p.norm(), p.grad.norm()
        if w_norm != 0 and g_norm != 0:
            factor = eta * w_norm / (g_norm + w_norm * decay + 1e-8)
            p.grad.add_(p, alpha=decay).mul_(min(factor / lr, 1))


def _plain_optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> Optimizer:
    if optim.name == "adamw":
        return AdamW(groups, lr=optim.lr, foreach=False)
    if optim.name == "sgd":
        return SGD(groups, lr=optim.lr, momentum=optim.momentum, foreach=False)
    looped = _LoopedLARS(groups, lr=optim.lr, momentum=optim.momentum, foreach=False)
    looped.eta = optim.eta
    return looped
