"""The sections of a configuration, and every key with what it means.

Every key is documented here, at its field, and nowhere else.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

# No value that a run could be meant to have is left out; what is kept out ends no run, no process
# and no machine by its size.
Name: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")
]
"""Of a file, a network: on one line."""
Width: TypeAlias = Annotated[int, Field(ge=1, le=65_536)]
"""Of a layer."""
Count: TypeAlias = Annotated[int, Field(ge=1, le=10**9)]
"""Of steps, epochs, images."""
Batch: TypeAlias = Annotated[int, Field(ge=1, le=2**20)]
"""Images of a step."""
Threads: TypeAlias = Annotated[int, Field(ge=1, le=1024)]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Weight: TypeAlias = Annotated[float, Field(ge=0, le=1e38)]
"""Of a term; float32 ends at 3.4e38."""
Rate: TypeAlias = Annotated[float, Field(gt=0, le=1e38)]
"""Of learning."""
Temperature: TypeAlias = Annotated[float, Field(ge=1e-3, le=1e3)]
Seconds: TypeAlias = Annotated[float, Field(gt=0, le=1e7)]
Gigabytes: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors, as are numbers that are none
    (NaN) or have no end; values cannot change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The backbone."""

    backbone: Name = "resnet18"
    """A torchvision model by name: resnet18, resnet50, vit_s_16, vit_b_16, ...; or a small one
    of ours: resnet10, resnet14, vit_n_2, ..."""
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    """ResNet's first layers: `cifar` is 3x3, stride 1, no max-pool; `auto` takes it up to 64 px."""
    stem_padding: int = Field(1, ge=1, le=2)
    """Padding of the CIFAR stem; the paper's reference code pads by 2."""
    sync_bn: bool = True
    """Batch statistics over the global batch, so that a run means the same at every world size."""
    frozen_patch: bool = False
    """Leave a vision transformer's patch projection at its random first values, as MoCo v3 does
    for stability (arXiv 2104.02057, sec. 4.2)."""


class ClassifierConfig(Section):
    """The continual classifier g on stopped features, and its term L_C^CT."""

    enabled: bool = True
    hidden: Width = 1000
    weight: Weight = 1.0
    """w_C"""
    stop_gradient: bool = True
    """false lets the labels teach the backbone too: supervised fine-tuning with `ssl_weight: 0`."""
    logit_adjustment: Weight = 0.0
    """tau: its loss sees the logits with tau log(share of the class among the labels met in this
    task) on top, so that rare classes, such as the replayed ones, are not learnt to be rare
    (arXiv 2007.07314); 1 is the published value, 0 = off."""


class DistillConfig(Section):
    """The two retention terms, each on its own switch."""

    features: bool = True
    """L_FE^KD: the method's own loss against the teacher's projections."""
    classifier: bool = True
    """L_C^KD: cross-entropy against the teacher's class probabilities."""
    features_weight: Weight | None = None
    """lambda_FE; null takes the method's published value."""
    classifier_weight: Weight = 2.0
    """lambda_C"""
    hidden: Width = 2048
    """Width of the distillation predictor h."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of a step's images that the teacher answers for: so many of every lane's images of the
    task, and of those it replays, rounded up. Both terms are then means over these."""


class TeacherConfig(Section):
    """The frozen copy of the model made when a task begins."""

    batch_stats: bool = False
    """Use batch statistics as the paper's reference code does, instead of frozen ones."""


class ReplayConfig(Section):
    """The store of past images."""

    fraction: Share = 0.01
    """Share of each finished task that is kept, per class, at least one a class; 0 = none."""
    batch_size: Batch = 32
    """Replayed images in a step, over all ranks."""
    select: Literal["first", "random", "herding"] = "random"
    """Which images of a class are kept."""


class TrainConfig(Section):
    """How long, how much at a time, from which seed."""

    epochs: Count = 500
    """Epochs of every task."""
    batch_size: Batch = 256
    """Images of the task in a step, over all ranks (replay comes on top)."""
    max_steps: Count | None = None
    """Stop every task after so many steps, wherever its schedule then stands."""
    seed: Seed = 0
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads of a rank; 0 = the machine's cores divided by the ranks on it."""
    accumulate: Batch = 1
    """Micro-batches that a step is cut into, one after the other, to save memory. Batch statistics
    and negatives are then those of a micro-batch (of all ranks), a queue moves with each of them,
    and the step's loss and gradient are their mean."""
    lanes: Batch | None = None
    """Into how many lanes the order is cut (docs/architecture.md); null = gcd of both batches."""


class OptimConfig(Section):
    """Optimizer and schedule; both begin afresh with every task."""

    name: Literal["lars", "sgd", "adamw"] = "lars"
    lr: Rate = 1.0
    """Peak learning rate for a global batch of 256; see `scale_lr`."""
    scale_lr: bool = True
    """Multiply `lr` by train.batch_size / 256 (the classifier's is never scaled)."""
    classifier_lr: Rate = 0.1
    weight_decay: Weight = 1e-5
    """Not applied to the classifier."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of lars and sgd."""
    eta: Rate = 0.02
    """LARS's trust coefficient."""
    warmup_epochs: float = Field(10, ge=0, le=10**9)
    warmup_start_lr: Weight = 0.003
    min_lr: Weight = 0.0
    """Where the cosine ends."""
    interval: Literal["epoch", "step"] = "epoch"
    """Whether the learning rate changes at each epoch, as published, or at each step."""
    clip_norm: Rate | None = None
    """Scale the gradient down to this norm, taken over all parameters, where it is longer."""


class StreamConfig(Section):
    """Where a stream that lies elsewhere is kept on this node (docs/data.md)."""

    cache_dir: Name | None = None
    """A folder on a disk of this node; null = in the user's cache folder, and for a stream on a
    path none at all."""
    cache_gb: Annotated[Gigabytes, Field(gt=0)] = 50.0
    """At most so many GB (1e9 bytes) are kept there, over all streams and runs of the node."""


_Ratio: TypeAlias = Annotated[float, Field(ge=0.01, le=100)]
_Deviation: TypeAlias = Annotated[float, Field(ge=1e-3, le=10)]


class ViewsConfig(Section):
    """The augmentation recipe. A pair of values is for the first and the second view."""

    backend: Literal["auto", "dali", "torch"] = "auto"
    """Who makes the views; `auto` is DALI where it is installed. Up to rounding they are equal."""
    size: int = Field(32, ge=8, le=4096)
    """Side of a view in pixels."""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """Least and largest share of the image's area in a crop."""
    crop_ratio: tuple[_Ratio, _Ratio] = (3 / 4, 4 / 3)
    """Least and largest width / height of a crop."""
    flip: Share = 0.5
    jitter: Share = 0.8
    """Probability of the colour jitter; the next four are its strengths."""
    brightness: Share = 0.4
    contrast: Share = 0.4
    saturation: Share = 0.2
    hue: float = Field(0.1, ge=0, le=0.5)
    grey: Share = 0.2
    blur: tuple[Share, Share] = (0.0, 0.0)
    """Probabilities, as those of the next."""
    solarise: tuple[Share, Share] = (0.0, 0.2)
    mean: tuple[Share, Share, Share] = (0.485, 0.456, 0.406)
    std: tuple[_Deviation, _Deviation, _Deviation] = (0.229, 0.224, 0.225)
    workers: Threads = 2
    """Threads of a rank that decode and crop."""
    prefetch: Annotated[int, Field(ge=1, le=1024)] = 3
    """Batches made ahead of need."""
    memory_budget: Gigabytes = 0.0
    """Gigabytes of a rank (of its GPU where DALI decodes there): a task whose images, decoded and
    with their replay, fit in stays in memory; 0 = none does. The views are the same."""
    max_bad: Share = 0.001
    """Share of a task's images (replay included) that may fail to decode, as `prepare --max-bad`:
    each is named and replaced (docs/architecture.md); more of them end the run."""
    stall_seconds: Seconds = 60.0
    """A file that does not answer for so long is named on standard error."""


class ParallelConfig(Section):
    """Where it runs."""

    engine: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """Who spreads the model over the ranks (docs/engines.md): every rank holds it whole (`ddp`),
    or a part of it (`fsdp`), or as much as `zero_stage` says (`deepspeed`)."""
    zero_stage: int = Field(1, ge=0, le=3)
    """What `deepspeed` cuts over the ranks: 0 nothing, 1 the optimizer's state, 2 the gradients as
    well, 3 the parameters (also those of momentum network and teacher) as well."""
    deepspeed_config: Name | None = None
    """A JSON file in DeepSpeed's own format whose settings of speed and memory are taken over."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What networks compute in while they train. Weights, batch statistics, losses, optimizer
    and evaluation are fp32 throughout."""
    tf32: bool = True
    """On a GPU, multiply float32 numbers as TF32, in convolutions and matrix products alike:
    several times as fast, with 10 bits of mantissa in place of 23. false: in neither."""
    deterministic: bool = True
    """On a GPU, use algorithms only that give the same bits every time, so that a run that was
    killed goes on bit for bit. A CPU's do anyway."""
    activation_checkpointing: bool = False
    """Compute the backbone's inner activations a second time in the backward pass, instead of
    keeping them: less memory, a third more time, the same values."""
    compile: bool = False
    """Compile the backbones with torch.compile; the first steps then take minutes."""
    cuda_graphs: bool = False
    """On a GPU, replay the compiled passes of momentum network and teacher as CUDA graphs: the same
    values up to rounding. Only with `compile` and engine `ddp`. It can pay where launching kernels
    takes longer than computing them: few images a GPU."""
    side_stream: bool = False
    """On a GPU, let the teacher compute on a stream beside the student's: the same values. Only
    with engine `ddp`. It pays where one network alone does not fill the GPU."""
    keep_memory: bool = True
    """On a CPU, keep what a step frees for the next one, which is quicker; false returns it to the
    system, so that a run takes no more than it needs at a time."""
    timeout_seconds: Seconds = 300.0
    """A collective that takes longer ends the run, and so do ranks that have not met by then."""
    silence_seconds: Seconds = 30.0
    """A rank whose heartbeat stops for so long is taken for dead, and all others end; so does one
    that hears of nobody any more."""


class EvalConfig(Section):
    """What is measured after every task."""

    batch_size: Batch = 256
    """Images of a rank in one forward pass."""
    knn: bool = True
    knn_k: Count = 20
    knn_temperature: Temperature = 0.07
    forward_transfer: bool = True
    """Linear probes on each task before it is learnt, and on the untrained backbone."""
    bank: Count = 5000
    """At most so many labelled training images feed the kNN bank, or a probe."""
    head: Literal["classifier", "ncm"] = "classifier"
    """What answers, in evaluation and when deployed: the classifier that is trained, or the nearest
    class mean (learner/ncm.py), which needs no training and knows no recency."""
    ncm: bool = False
    """Measure the nearest class mean beside the classifier that answers."""
    shrinkage: float = Field(0.9, gt=0, le=1)
    """Of the covariance by which a mean is near, to the sphere; 1 = plain distance."""


class CheckpointConfig(Section):
    """When the state is saved (always before and after a task's evaluation), and what stays."""

    every_steps: int = Field(0, ge=0, le=10**9)
    """Also after so many steps within a task; 0 = only at its end."""
    keep_last: Count = 2
    """Checkpoints that stay; an older one stands in for a newest that is damaged."""
    keep_every: int = Field(0, ge=0, le=10**9)
    """Those at multiples of so many steps within a task, and those between tasks, stay for
    good; 0 = none do."""
    asynchronous: bool = True
    """Write while training goes on; false waits for every save."""
    max_failures: Count = 3
    """Saves in a row that may fail before the run ends."""
    grace_seconds: Seconds = 60.0
    """Time that SIGTERM, SIGUSR1 or SIGUSR2 leaves for a last checkpoint."""


class LogConfig(Section):
    every_steps: Count = 10
    """A row in events.jsonl, and one in TensorBoard, every so many steps."""


class Config(Section):
    """A whole run."""

    method: Name = "byol"
    """The self-supervised method; `ssl` holds its own settings."""
    ssl: dict[str, Any] = Field(default_factory=dict)
    """Settings of the method, as its file in learner/methods documents them."""
    ssl_weight: Weight = 1.0
    """Of L_FE^CT, the method's own loss; 0 = off."""
    model: ModelConfig = ModelConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    distill: DistillConfig = DistillConfig()
    teacher: TeacherConfig = TeacherConfig()
    replay: ReplayConfig = ReplayConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    stream: StreamConfig = StreamConfig()
    views: ViewsConfig = ViewsConfig()
    parallel: ParallelConfig = ParallelConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

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
        if self.model.frozen_patch and not self.model.backbone.startswith("vit_"):
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
        taught = self.classifier.enabled and not self.classifier.stop_gradient
        if self.ssl_weight == 0 and not (taught or self.distill.features):
            raise ValueError(
                "ssl_weight: at 0, and with classifier.stop_gradient and without "
                "distill.features, nothing teaches the backbone; set "
                "classifier.stop_gradient=false to learn it from labels"
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
        """Digest of all that decides what is computed (`SILENT_KEYS` do not)."""
        flat = {k: v for k, v in flatten(self.dump()).items() if not is_silent(k)}
        return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


SILENT_KEYS = (
    "checkpoint.",
    "log.",
    "views.backend",
    "views.workers",
    "views.prefetch",
    "views.memory_budget",
    "views.max_bad",
    "views.stall_seconds",
    "stream.",
    "train.threads",
    "parallel.engine",
    "parallel.zero_stage",
    "parallel.deepspeed_config",
    "parallel.activation_checkpointing",
    "parallel.deterministic",
    "parallel.side_stream",
    "parallel.keep_memory",
    "parallel.compile",
    "parallel.cuda_graphs",
    "parallel.timeout_seconds",
    "parallel.silence_seconds",
    "eval.batch_size",
)
"""Keys, or beginnings of keys, that change nothing of what a run computes but its rounding."""


def is_silent(key: str) -> bool:
    """Whether a dotted key may differ between two parts of one run."""
    return key.startswith(SILENT_KEYS)


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
