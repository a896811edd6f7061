"""Configurations and a backbone so small that a learner's step takes milliseconds."""

from typing import Any

from torch import nn

from kaizen_dist.config.learning import ModelConfig
from kaizen_dist.config.schema import Config
from kaizen_dist.learner.backbone import Backbone

SMALL_SSL: dict[str, dict[str, Any]] = {
    "byol": {"hidden": 16, "dim": 8, "predictor_hidden": 16},
    "simclr": {"hidden": 16, "dim": 8},
    "mocov2plus": {"hidden": 16, "dim": 8, "queue": 20},
    "mocov3": {"hidden": 16, "dim": 8, "predictor_hidden": 16},
    "vicreg": {"hidden": 16, "dim": 8},
    "barlow_twins": {"hidden": 16, "dim": 8},
    "simsiam": {"hidden": 16, "dim": 8, "predictor_hidden": 4},
}


def small_config(method: str, **sections: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "method": method,
            "ssl": SMALL_SSL[method],
            "model": {"backbone": "resnet10", **sections.pop("model", {})},
            "views": {"size": 8},
            "classifier": {"hidden": 12, **sections.pop("classifier", {})},
            "distill": {"hidden": 16, **sections.pop("distill", {})},
            **sections,
        }
    )


def tiny_backbone(config: ModelConfig, image_size: int) -> Backbone:
    """Two convolutions with BatchNorm, so that a learner's step takes milliseconds."""
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3)]
    pooled = [nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Backbone(nn.Sequential(*layers, *pooled), 16)
