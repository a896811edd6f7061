"""A backbone of 5,000 weights, for tests of runs that are about anything but the network."""

from torch import nn
from torchvision.models.resnet import BasicBlock

from kaizen_dist.learner.backbone import Backbone

WIDTH = 16


class Tiny(Backbone):
    """`model.backbone: tiny_backbone:Tiny`: one residual block at half the resolution."""

    def __init__(self, _config: object, _image_size: int) -> None:
        first = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1, bias=False)
        parts = [first, nn.BatchNorm2d(WIDTH), nn.ReLU(), BasicBlock(WIDTH, WIDTH)]
        network = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(network, WIDTH)
