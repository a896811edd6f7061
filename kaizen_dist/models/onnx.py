"""An exported model as ONNX: images in, probabilities and features out, any batch size.

images         float32 [batch, 3, s, s], plain views (resized, cropped, normalised)
probabilities  float32 [batch, C], 0 for classes of later tasks (absent without a classifier)
features       float32 [batch, f]
"""

from importlib.util import find_spec
from pathlib import Path

import torch

from kaizen_dist.common.errors import UsageError
from kaizen_dist.models.network import DeployedModel

FILE = "model.onnx"
NEEDED = ("onnx", "onnxscript")
SINGLE_FILE_UP_TO = 1_800_000_000
"""Bytes of weights above which they are stored in model.onnx.data: one protobuf holds 2 GB."""


def require() -> None:
    """Check the packages of torch's exporter. Raises UsageError naming those to install."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--onnx: {' and '.join(missing)} not installed; "
            f"`pip install {' '.join(NEEDED)}` (or 'kaizen-dist[onnx]') brings them"
        )


def write_onnx(model: DeployedModel, path: Path) -> None:
    """Write `path`, and `path`.data beside it for weights larger than one protobuf holds.

    Raises:
        OSError: it cannot be written.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    size = model.description.view.size
    headless = model.classifier is None
    program = torch.onnx.export(
        model.backbone if headless else model,
        # Two images: torch takes an axis of length 1 for one that never changes.
        (torch.zeros(2, 3, size, size),),
        input_names=["images"],
        output_names=["features"] if headless else ["probabilities", "features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    # The exporter notes at every node which line of which file of this machine it comes from.
    ClearMetadataAndDocStringPass()(program.model)
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    program.save(path, external_data=weights > SINGLE_FILE_UP_TO)
