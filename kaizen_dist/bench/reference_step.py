"""The training step written plainly: baseline of `bench step`, and reference for its losses.

Every network processes every view by itself, in torch's default layout, in float32; optimizer and
momentum network process one parameter after the other. It shares the learner's weights, the
formulas of its losses, its optimizer and its schedule, and nothing else. One process.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from kaizen_dist.bench import step_timer
from kaizen_dist.bench.step_timer import StepTimer
from kaizen_dist.config import Config
from kaizen_dist.engine.optim import build_optimizer, learning_rates, set_learning_rates
from kaizen_dist.engine.options import micro_batches
from kaizen_dist.learner.backbone import Backbone
from kaizen_dist.learner.distill import soft_label_loss
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.losses import adjusted_logits, classification_loss
from kaizen_dist.learner.methods.base import Pair
from kaizen_dist.learner.precision import no_loss
from kaizen_dist.learner.terms import Losses


class ReferenceStep:
    """Steps a learner of its second task, whose teacher is taken from it as it is."""

    def __init__(self, config: Config, learner: Learner, timer: StepTimer) -> None:
        self.config, self.learner, self.timer = config, learner, timer
        learner.begin_task(first=False)
        for module in learner.modules():
            if isinstance(module, Backbone):
                module.layout = torch.contiguous_format
        groups = learner.parameter_groups(config.optim)
        alone = [group | {"params": [p]} for group in groups for p in group["params"]]
        self.optimizer = build_optimizer(alone, config.optim, config.train.batch_size)

    def step(self, views: Tensor, labels: Tensor, number: int, total: int) -> Losses:
        """One update on views [2, n, 3, s, s] and labels [n]; the first epoch's learning rates."""
        config, learner = self.config, self.learner
        learner.train()
        rates = learning_rates(config.optim, config.train.batch_size, 0, config.train.epochs)
        set_learning_rates(self.optimizer, rates)
        self.optimizer.zero_grad()
        parts = micro_batches(views, labels, config.lanes, config.train.accumulate)
        taken = []
        for part in parts:
            self.timer.mark(step_timer.STUDENT)
            losses = self.losses(*part)
            self.timer.mark(step_timer.BACKWARD)
            (losses.total / len(parts)).backward()
            taken.append(losses.stack())
        self.timer.mark(step_timer.OPTIMIZER)
        if config.optim.clip_norm is not None:
            trained = [p for p in learner.parameters() if p.requires_grad]
            clip_grad_norm_(trained, config.optim.clip_norm)
        self.optimizer.step()
        if learner.momentum is not None:
            self._move_momentum(learner.momentum, learner.method.tau(number / total))
        return Losses(*torch.stack(taken).mean(0))

    def losses(self, views: Tensor, labels: Tensor) -> Losses:
        """Those of `Learner.forward` on views [2, n, 3, s, s] and labels [n]."""
        learner, config, gather = self.learner, self.config, self.learner.gather
        features = learner.backbone(views[0]), learner.backbone(views[1])
        z = learner.method.projector(features[0]), learner.method.projector(features[1])
        keys = old = old_logits = old_taught = None
        with torch.no_grad():
            if (momentum := learner.momentum) is not None:
                with self.timer.part(step_timer.MOMENTUM):
                    (keys,) = _both(momentum.backbone, views, momentum.projector)
            if (teacher := learner.teacher) is not None:
                with self.timer.part(step_timer.TEACHER):
                    rows = learner.distilled_rows(views, 1)
                    heads = teacher.projector, teacher.classifier, teacher.supervised
                    old, old_logits, old_taught = _both(teacher.backbone, rows, *heads)
        ssl = config.ssl_weight * learner.method.loss(*z, keys, gather)
        if keys is not None:
            learner.method.remember(keys, gather)
        classifier = kd_features = kd_classifier = no_loss(z[0])
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
        taught = learner.supervised_terms(features, labels, old_taught)
        return Losses.of(ssl, classifier, kd_features, kd_classifier, *taught)

    def _adjusted(self, logits: Tensor, labels: Tensor) -> Tensor:
        if (seen := self.learner.labels_seen) is None:
            return logits
        seen += torch.bincount(labels[labels >= 0], minlength=len(seen))
        return adjusted_logits(logits, seen, self.config.classifier.logit_adjustment)

    @torch.no_grad()
    def _move_momentum(self, momentum: nn.Module, tau: float) -> None:
        networks = (self.learner.backbone, self.learner.method.projector)
        student = [p for network in networks for p in network.parameters()]
        for own, theirs in zip(momentum.parameters(), student, strict=True):
            own.mul_(tau).add_(theirs, alpha=1 - tau)


def _both(backbone: nn.Module, views: Tensor, *heads: nn.Module | None) -> list[Pair | None]:
    """The output of every head for both views; None where there is no such head."""
    first, second = (backbone(view) for view in views)
    return [None if head is None else (head(first), head(second)) for head in heads]
