"""The code in a model card: plain torch, torchvision and safetensors, to be run as it stands.

A `DeployedModel` comes in, Python goes out that builds the same network, loads the files beside
it and names an image, without this package.
"""

from torchvision.models.resnet import ResNet
from torchvision.models.vision_transformer import VisionTransformer

from kaizen_dist.learner.backbone import SMALL_RESNETS
from kaizen_dist.models.description import Description
from kaizen_dist.models.network import BACKBONE, CLASSIFIER, DeployedModel

_IMAGE = """
view = about["view"]
image = Image.new("RGB", (64, 48))  # yours: Image.open("photo.jpg").convert("RGB")
scale = view["shorter"] / min(image.size)
width, height = (max(view["size"], round(side * scale)) for side in image.size)
left, top = (width - view["size"]) // 2, (height - view["size"]) // 2
image = image.resize((width, height), Image.Resampling.BICUBIC)
image = image.crop((left, top, left + view["size"], top + view["size"]))
mean, std = (torch.tensor(view[name]) * 255 for name in ("mean", "std"))
pixels = (torch.from_numpy(np.array(image)).float() - mean) / std

with torch.no_grad():
    features = backbone(pixels.permute(2, 0, 1)[None])
"""
_ANSWER = """    logits = classifier(features)[0, about["seen"]]  # the others had not come up
for probability, number in zip(logits.softmax(0).tolist(), about["seen"]):
    print(f"{probability:.6f} {about['classes'][number]}")
"""
_FEATURES = """print(features.shape)
"""


def python_snippet(model: DeployedModel) -> str:
    """Python code for the export's folder; it prints a line `probability class` for each class
    seen, or the shape of the features where there is no classifier."""
    needed, build = _network(model)
    has_head = model.classifier is not None
    lines = [
        "import json",
        "from pathlib import Path",
        "",
        "import numpy as np",
        "import torch",
        "from PIL import Image",
        "from safetensors.torch import load_file",
        "from torch import nn",
        needed,
        "",
        'about = json.loads(Path("model.json").read_text(encoding="utf-8"))',
        *build,
        f'backbone.load_state_dict(load_file("{BACKBONE}"))',
        "backbone.eval()",
        *(_head(model.description) if has_head else []),
    ]
    return "\n".join(lines) + "\n" + _IMAGE + (_ANSWER if has_head else _FEATURES)


def _network(model: DeployedModel) -> tuple[str, list[str]]:
    """(the import, the lines that build `backbone`)"""
    network = model.backbone.network
    if isinstance(network, VisionTransformer):
        return _vit(network)
    assert isinstance(network, ResNet)
    about = model.description.network
    if about.backbone in SMALL_RESNETS:
        needed = "from torchvision.models.resnet import BasicBlock, ResNet"
        build = [f"backbone = ResNet(BasicBlock, {SMALL_RESNETS[about.backbone]})"]
    else:
        needed = f"from torchvision.models import {about.backbone}"
        build = [f"backbone = {about.backbone}()"]
    if about.stem == "cifar":
        build += [
            "backbone.conv1 = "
            f"nn.Conv2d(3, 64, 3, stride=1, padding={about.stem_padding}, bias=False)",
            "backbone.maxpool = nn.Identity()",
        ]
    return needed, [*build, "backbone.fc = nn.Identity()"]


def _vit(network: VisionTransformer) -> tuple[str, list[str]]:
    layers = network.encoder.layers
    numbers = {
        "image_size": network.image_size,
        "patch_size": network.patch_size,
        "num_layers": len(layers),
        "num_heads": layers[0].num_heads,
        "hidden_dim": network.hidden_dim,
        "mlp_dim": network.mlp_dim,
    }
    given = [f"    {name}={value}," for name, value in numbers.items()]
    build = ["backbone = VisionTransformer(", *given, ")", "backbone.heads = nn.Identity()"]
    return "from torchvision.models import VisionTransformer", build


def _head(description: Description) -> list[str]:
    features, hidden = description.network.features, description.network.hidden
    if description.network.head == "means":
        return [
            f"linear = nn.Linear({features}, {len(description.classes)})",
            f'linear.load_state_dict(load_file("{CLASSIFIER}"))',
            "classifier = lambda features: linear(nn.functional.normalize(features))",
        ]
    widths = f"nn.Linear({features}, {hidden}), nn.ReLU(), "
    return [
        f"classifier = nn.Sequential({widths}nn.Linear({hidden}, {len(description.classes)}))",
        f'classifier.load_state_dict(load_file("{CLASSIFIER}"))',
    ]
