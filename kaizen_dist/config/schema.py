"""The whole configuration, and how two of them differ.

Every key is documented at its field, in `learning` and `running`, and nowhere else.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import Field, model_validator

from kaizen_dist.config.base import (
    Name,
    Section,
    Seed,
    Share,
    Silent,
    Threads,
    Weight,
    marked_silent,
)
from kaizen_dist.config.learning import (
    ClassifierConfig,
    DistillConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    ReplayConfig,
    SuperviseConfig,
    TeacherConfig,
    TrainConfig,
)
from kaizen_dist.config.running import (
    CheckpointConfig,
    LogConfig,
    ParallelConfig,
    StreamConfig,
    ViewsConfig,
)

__all__ = [
    "CheckpointConfig",
    "ClassifierConfig",
    "Config",
    "DistillConfig",
    "EvalConfig",
    "LogConfig",
    "ModelConfig",
    "Name",
    "OptimConfig",
    "ParallelConfig",
    "ReplayConfig",
    "Section",
    "Seed",
    "Share",
    "StreamConfig",
    "SuperviseConfig",
    "TeacherConfig",
    "Threads",
    "TrainConfig",
    "ViewsConfig",
    "differences",
    "flatten",
    "is_silent",
]


class Config(Section):
    """A whole run."""

    method: Name = "byol"
    """The self-supervised method, or module:Class (docs/extending.md); `ssl` holds its settings."""
    ssl: dict[str, Any] = Field(default_factory=dict)
    """Settings of the method, as its file in learner/methods documents them."""
    ssl_weight: Weight = 1.0
    """Of L_FE^CT, the method's own loss; 0 = off."""
    model: ModelConfig = ModelConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    supervise: SuperviseConfig = SuperviseConfig()
    distill: DistillConfig = DistillConfig()
    teacher: TeacherConfig = TeacherConfig()
    replay: ReplayConfig = ReplayConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    stream: Silent[StreamConfig] = StreamConfig()
    views: ViewsConfig = ViewsConfig()
    parallel: ParallelConfig = ParallelConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: Silent[CheckpointConfig] = CheckpointConfig()
    log: Silent[LogConfig] = LogConfig()

    @property
    def lanes(self) -> int:
        """Lanes of the order: `train.lanes`, or the most that both batches can be cut into."""
        return self.train.lanes or math.gcd(self.train.batch_size, self.replay.batch_size)

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        for name, size in (
            ("train.batch_size", self.train.batch_size),
            ("replay.batch_size", self.replay.batch_size),
        ):
            if size % self.lanes:
                raise ValueError(f"{name}: {size} is not a multiple of train.lanes={self.lanes}")
        if self.optim.warmup_epochs >= self.train.epochs:
            raise ValueError(
                f"optim.warmup_epochs: {self.optim.warmup_epochs} leaves nothing of "
                f"train.epochs={self.train.epochs}; make it smaller"
            )
        if self.optim.warmup_heads >= self.train.epochs:
            raise ValueError(
                f"optim.warmup_heads: {self.optim.warmup_heads:g} leaves nothing of "
                f"train.epochs={self.train.epochs} for the backbone; make it smaller"
            )
        if self.optim.warmup_heads and self.model.init is None:
            raise ValueError(
                "optim.warmup_heads: heads warm up on a backbone that knows something, and "
                "model.init gives it nothing; set model.init, or optim.warmup_heads=0"
            )
        if self.model.frozen_patch and not self.model.backbone.startswith(("vit_", "timm/")):
            raise ValueError(
                f"model.frozen_patch: model.backbone={self.model.backbone} has no patches; set it "
                "to false, or take a vision transformer, e.g. vit_s_16"
            )
        if self.distill.classifier and not self.classifier.enabled:
            raise ValueError(
                "distill.classifier: there is no classifier to keep with "
                "classifier.enabled=false; set both or neither"
            )
        if self.teacher.batch_stats and (self.eval.ncm or self.eval.head == "ncm"):
            raise ValueError(
                "teacher.batch_stats: the nearest class mean (eval.ncm, eval.head) measures drift "
                "by a teacher whose answers do not depend on the batch; set it to false"
            )
        taught = self.supervise.weight > 0 or (
            self.classifier.enabled and not self.classifier.stop_gradient
        )
        if self.ssl_weight == 0 and not (taught or self.distill.features):
            raise ValueError(
                "ssl_weight: at 0, and with classifier.stop_gradient and without "
                "distill.features, nothing teaches the backbone; set "
                "supervise.weight=1 to learn it from labels"
            )
        for name, (low, high) in (
            ("views.crop_scale", self.views.crop_scale),
            ("views.crop_ratio", self.views.crop_ratio),
        ):
            if not 0 < low <= high:
                raise ValueError(f"{name}: needs 0 < least <= largest, got {low}, {high}")
        return self

    def dump(self) -> dict[str, Any]:
        """The resolved configuration as plain data."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved configuration as a file that `load` reads back to the same value."""
        return yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)

    @property
    def sha256(self) -> str:
        """Digest of all that decides what is computed (a `Silent` key does not)."""
        flat = {k: v for k, v in flatten(self.dump()).items() if not is_silent(k)}
        return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def is_silent(key: str) -> bool:
    """Whether a dotted key changes nothing of what a run computes (`Silent`)."""
    model: Any = Config
    for name in key.split("."):
        field = model.model_fields.get(name) if hasattr(model, "model_fields") else None
        if field is None:
            return False
        if marked_silent(field):
            return True
        model = field.annotation
    return False


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(ours: Config, theirs: Config) -> list[str]:
    """`key: theirs -> ours` for every key that decides what is computed and differs."""
    a, b = flatten(ours.dump()), flatten(theirs.dump())
    keys = [k for k in dict.fromkeys([*b, *a]) if not is_silent(k)]
    return [
        f"{k}: {b.get(k, 'absent')} -> {a.get(k, 'absent')}" for k in keys if a.get(k) != b.get(k)
    ]
