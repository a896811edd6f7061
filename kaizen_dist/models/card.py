"""The model card of an export, in Markdown: contents, use, figures, limits.

The text is templates/card.md.j2; the Python in it, templates/snippet.py.j2, needs torch,
torchvision (or timm) and safetensors only. A figure that was not measured is marked so; names from
outside are escaped; no path of the machine that trained it is shown.
"""

from pathlib import PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from torchvision.models.resnet import ResNet
from torchvision.models.vision_transformer import VisionTransformer

from kaizen_dist.common.formatting import fraction, listing, markdown_text, plural
from kaizen_dist.config import Config, flatten
from kaizen_dist.evaluation.metrics import METRICS
from kaizen_dist.learner.backbone import SMALL_RESNETS
from kaizen_dist.learner.timm_backbone import TimmBackbone
from kaizen_dist.models.network import DeployedModel
from kaizen_dist.runs.facts import KEY_SETTINGS, METHODS, setting
from kaizen_dist.runs.results import Results


def model_card(model: DeployedModel, config: Config, results: Results) -> str:
    """The card of the model as it was after its task."""
    about, backbone = model.description, model.backbone.network
    parts = ("accuracy", "knn", "probe_before", "probe_random")
    then = results.model_copy(
        update={name: getattr(results, name)[: about.task + 1] for name in parts}
    )
    then.update_metrics()
    flat = flatten(config.dump())
    retention = {
        "distillation from itself as it was before each task": config.distill.features
        or config.distill.classifier,
        f"replay of {100 * config.replay.fraction:g} % of the past": config.replay.fraction > 0,
    }
    templates = Environment(
        loader=PackageLoader("kaizen_dist.models"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=select_autoescape(),  # of HTML; this is Markdown
    )
    templates.filters |= {"escaped": markdown_text, "figure": _figure}
    return templates.get_template("card.md.j2").render(
        about=about,
        results=then,
        plural=plural,
        method=METHODS.get(config.method, config.method),
        retention=listing([name for name, used in retention.items() if used]),
        vit=backbone if isinstance(backbone, VisionTransformer) else None,
        resnet=isinstance(backbone, ResNet),
        timm_call=model.backbone.call if isinstance(model.backbone, TimmBackbone) else None,
        blocks=SMALL_RESNETS.get(about.network.backbone),
        source=_without_folder(results.stream.source),
        metrics=METRICS[:5],  # the four, and kNN
        settings=[(key, setting(flat[key])) for key in KEY_SETTINGS],
    )


def _without_folder(source: str) -> str:
    """A source without the folder that it lay in, which is private to the machine."""
    kind, _, rest = source.partition(":")
    if kind == "torchvision":
        return f"{kind}:{rest.partition(':')[0]}"
    return f"{kind}:{PurePath(rest).name}" if rest else kind


def _figure(value: float | None) -> str:
    return "not measured" if value is None else fraction(value)
