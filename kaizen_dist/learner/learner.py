"""The learner: one module, two views and their labels in, the four-term loss out.

    L = L_FE^CT + w_C L_C^CT + lambda_FE L_FE^KD + lambda_C L_C^KD      (Kaizen, arXiv 2303.17235)

An engine wraps it and calls it; the trainer tells it when a task begins and when a step is done.
Evaluation takes features and logits from it. All of its state is in its state_dict.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.learning import OptimConfig
from kaizen_dist.config.schema import Config
from kaizen_dist.learner.backbone import freeze_patch
from kaizen_dist.learner.classes import KnownClasses, count_labels
from kaizen_dist.learner.distill import DistilledRows, FeatureDistiller, soft_label_loss
from kaizen_dist.learner.first_weights import UntrainedBackbone, class_rows, grow_rows, seeded
from kaizen_dist.learner.gather import ALONE, Gather
from kaizen_dist.learner.heads import mlp
from kaizen_dist.learner.losses import (
    adjusted_logits,
    classification_loss,
    with_new_classes,
    without_classes,
)
from kaizen_dist.learner.methods import method_class
from kaizen_dist.learner.methods.base import Pair
from kaizen_dist.learner.momentum import MomentumNetwork
from kaizen_dist.learner.ncm import ClassMeans
from kaizen_dist.learner.parameter_groups import parameter_groups
from kaizen_dist.learner.precision import no_loss
from kaizen_dist.learner.side_stream import on_side_stream
from kaizen_dist.learner.supervision import SupervisedBranch
from kaizen_dist.learner.teacher import Teacher, TeacherOutput
from kaizen_dist.learner.terms import Losses


class Learner(nn.Module):
    """Backbone, method, classifier, momentum network and teacher of a continual run.

    Its first weights are functions of `config.train.seed` and of what each part is for, so that
    switching a part off leaves the others as they were. `num_classes` counts the classes known so
    far, or those of all tasks with `classifier.over=all`. `config.distill` and `config.classifier`
    decide which terms there are.

    Raises:
        UsageError: an unknown method or backbone, or a stem that does not fit.
    """

    def __init__(self, config: Config, num_classes: int, gather: Gather = ALONE) -> None:
        super().__init__()
        self.config = config
        self.gather = gather
        self.num_classes = num_classes
        self.unseen: Tensor | None
        """bool [C]: classes that no task so far has; None where there is none such."""
        self.unseen_before: Tensor | None
        for name in ("unseen", "unseen_before"):  # they follow from the stream, and move along
            self.register_buffer(name, None, persistent=False)
        method = method_class(config.method)
        seed = config.train.seed
        self.backbone = UntrainedBackbone(config).backbone
        if config.model.frozen_patch:
            freeze_patch(self.backbone)
        features = self.backbone.features
        with seeded(seed, "method"):
            self.method = method(features, method.Settings.model_validate(config.ssl))
        self.classifier: nn.Sequential | None = None
        if config.classifier.enabled:
            with seeded(seed, "classifier"):
                hidden = config.classifier.hidden
                self.classifier = mlp(features, hidden, num_classes, batch_norm=False)
            if config.classifier.over == "known":
                rows = class_rows(seed, 0, num_classes, hidden)
                with torch.no_grad():
                    self._outputs.weight.copy_(rows[:, :-1])
                    self._outputs.bias.copy_(rows[:, -1])
        self.distiller: FeatureDistiller | None = None
        if config.distill.features:
            with seeded(seed, "distiller"):
                self.distiller = FeatureDistiller(self.method.distill_dim, config.distill.hidden)
        self.supervised: SupervisedBranch | None = None
        if config.supervise.weight > 0:
            with seeded(seed, "supervised"):
                self.supervised = SupervisedBranch(features, config, num_classes)
        self.labels_seen: Tensor | None
        """int64 [C]: labels met in this task, over all ranks."""
        adjusted = config.classifier.enabled and config.classifier.logit_adjustment > 0
        self.register_buffer("labels_seen", torch.zeros(num_classes).long() if adjusted else None)
        self.class_means: ClassMeans | None = None
        if config.eval.ncm or config.eval.head == "ncm":
            self.class_means = ClassMeans(num_classes, features)
        self.momentum: MomentumNetwork | None = None
        if method.momentum:
            self.momentum = MomentumNetwork(self.backbone, self.method.projector)
        self.teacher: Teacher | None = None
        self.distilled_rows = DistilledRows(config, gather.world_size)
        self.begin_task(first=True)

    def begin_task(self, first: bool, classes: KnownClasses | None = None) -> None:
        """Take the student as it is now for the task's teacher, in place of the last one; then
        grow to `classes` (None: as many as before).

        There is no teacher in the first task, nor where both distillation terms are off. Call
        it before wrapping the learner and before building the task's optimizer: it decides
        which parameters are trained. A state saved within a task (or at its end) loads into a
        fresh learner after `begin_task(first=...)` of that task, which makes the teacher's place.
        """
        distill = self.config.distill
        self.teacher = None
        if not first and (distill.features or distill.classifier):
            self.teacher = Teacher(
                self.backbone,
                self.method.projector if distill.features else None,
                self.classifier if distill.classifier else None,
                self.supervised.projector if self.supervised and distill.features else None,
                self.config.teacher.batch_stats,
            )
        if self.distiller is not None:
            self.distiller.requires_grad_(self.teacher is not None)
        if self.supervised is not None:
            self.supervised.begin_task(first, self.teacher is not None)
        if classes is not None:
            self.grow(classes.count)
            self.unseen, self.unseen_before = classes.masks(next(self.parameters()).device)
        if self.labels_seen is not None:
            self.labels_seen.zero_()

    def grow(self, classes: int) -> None:
        """Make place for `classes` classes, whose outputs are as if they had been there always."""
        if classes == self.num_classes:
            return
        if classes < self.num_classes:
            raise ValueError(f"{self.num_classes} classes cannot become {classes}")
        self.num_classes = classes
        if self.classifier is not None:
            grow_rows(self._outputs, self.config.train.seed, classes)
        if self.supervised is not None:
            self.supervised.grow(classes)
        if self.labels_seen is not None:
            self.labels_seen = F.pad(self.labels_seen, (0, classes - len(self.labels_seen)))
        if self.class_means is not None:
            self.class_means.grow(classes)

    @property
    def _outputs(self) -> nn.Linear:
        """The classifier's last layer, a row a class."""
        assert self.classifier is not None
        last = self.classifier[-1]
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, views: Tensor, labels: Tensor) -> Losses:
        """The losses of a step.

        Args:
            views: [2, n, 3, s, s], the two views of this rank's images.
            labels: int64 [n], -1 = unlabelled.
        """
        # Constants first: what they needed is free before the student's activations are kept.
        teacher_output = self._start_teacher(views)
        keys = self.momentum(views) if self.momentum is not None else None
        # Each view is a forward of its own, with batch statistics of its own.
        features = self.backbone(views[0]), self.backbone(views[1])
        z = self.method.projector(features[0]), self.method.projector(features[1])
        teacher = teacher_output()

        ssl = self.config.ssl_weight * self.method.loss(*z, keys, self.gather)
        classifier, kd_classifier = self._classifier_terms(features, labels, teacher)
        kd_features = self._kd_features(z, teacher)
        supervised, kd_supervised = self.supervised_terms(features, labels, teacher.supervised)
        if keys is not None and self.training:
            self.method.remember(keys, self.gather)
        return Losses.of(ssl, classifier, kd_features, kd_classifier, supervised, kd_supervised)

    def _start_teacher(self, views: Tensor) -> Callable[[], TeacherOutput]:
        """Start the teacher's forward pass on this rank's views; the result waits for it."""
        if self.teacher is None:
            return lambda: TeacherOutput(None, None)
        rows = self.distilled_rows(views, 1)
        if self.config.parallel.side_stream:
            return on_side_stream(self.teacher, rows)
        output: TeacherOutput = self.teacher(rows)
        return lambda: output

    def _classifier_terms(
        self, features: Pair, labels: Tensor, teacher: TeacherOutput
    ) -> tuple[Tensor, Tensor]:
        """w_C L_C^CT and lambda_C L_C^KD, on features whose gradient is stopped by default."""
        off = no_loss(features[0])
        if self.classifier is None:
            return off, off
        stacked = torch.stack(features)
        stopped = self.config.classifier.stop_gradient
        logits = self.classifier(stacked.detach() if stopped else stacked)
        learn = self._learn_labels(logits, labels)
        if teacher.logits is None:
            return learn, off
        held = without_classes(self.distilled_rows(logits, 1), self.unseen)
        answers = with_new_classes(teacher.logits, self.num_classes, self.unseen_before)
        keep = self.config.distill.classifier_weight * soft_label_loss(*held, *answers)
        return learn, keep

    def _learn_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """w_C L_C^CT, over the classes known so far."""
        logits = without_classes(logits, self.unseen)
        if self.labels_seen is not None and self.training:
            count_labels(self.labels_seen, labels, self.gather)
        loss = classification_loss(self._adjusted(logits), labels, self.gather)
        return self.config.classifier.weight * loss

    def _adjusted(self, logits: Tensor) -> Tensor:
        """Logits [..., C] for a loss that is to be balanced, where they are adjusted."""
        if self.labels_seen is None:
            return logits
        return adjusted_logits(logits, self.labels_seen, self.config.classifier.logit_adjustment)

    def _kd_features(self, z: Pair, teacher: TeacherOutput) -> Tensor:
        """lambda_FE L_FE^KD."""
        if self.distiller is None or teacher.projections is None:
            return no_loss(z[0])
        old1, old2 = teacher.projections
        chosen = self.config.distill.features_weight
        weight = self.method.distill_weight if chosen is None else chosen
        held = self.distilled_rows(z[0], 0), self.distilled_rows(z[1], 0)
        kept: Tensor = self.distiller(self.method, held, (old1, old2), self.gather)
        return weight * kept

    def supervised_terms(
        self, features: Pair, labels: Tensor, old: Pair | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The supervised branch's loss, and its distillation from the teacher's projections."""
        branch, off = self.supervised, no_loss(features[0])
        if branch is None or not branch.active:
            return off, off
        z = branch.projector(features[0]), branch.projector(features[1])
        learn = branch.learn(z, labels, self.unseen, self._adjusted, self.gather)
        if old is None:
            return learn, off
        held = self.distilled_rows(z[0], 0), self.distilled_rows(z[1], 0)
        return learn, branch.keep(held, old, self.gather)

    def after_step(self, progress: float) -> None:
        """Move the momentum network after an optimizer step.

        `progress` in [0, 1) is the number of the step within its task (from 0) over the steps
        of the task.
        """
        if self.momentum is not None:
            student = chain(self.backbone.parameters(), self.method.projector.parameters())
            self.momentum.update(student, self.method.tau(progress))

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Features [n, f] of images [n, 3, s, s]. Only in `eval()` mode: nothing may change."""
        if self.training:
            raise RuntimeError("call learner.eval() first: evaluation must not move BatchNorm")
        features: Tensor = self.backbone(images)
        return features

    @torch.no_grad()
    def embed_before(self, images: Tensor) -> Tensor:
        """Features [n, f] that images [n, 3, s, s] had when the task began, by the teacher."""
        assert self.teacher is not None
        features: Tensor = self.teacher.backbone(images)
        return features

    @property
    def eval_head(self) -> nn.Module | None:
        """Classification head used for evaluation and export, on the features of `embed`."""
        return self.class_means if self.config.eval.head == "ncm" else self.classifier

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The continual classifier's logits [n, C] of images [n, 3, s, s], in `eval()` mode.

        Raises:
            UsageError: the configuration has no classifier.
        """
        if self.eval_head is None:
            raise UsageError("classifier.enabled: this model has no classifier; set it to true")
        logits: Tensor = self.eval_head(self.embed(images))
        return logits

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        """What an optimizer trains in this task, by `parameter_groups.parameter_groups`."""
        return parameter_groups(self, self.backbone, self.classifier, optim)
