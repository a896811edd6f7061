"""Sections that decide what is learnt and what is measured."""

from typing import Annotated, Literal

from pydantic import Field

from kaizen_dist.config.base import (
    Batch,
    Count,
    Name,
    Rate,
    Section,
    Seed,
    Share,
    Silent,
    Temperature,
    Weight,
    Width,
)


class ModelConfig(Section):
    """The backbone."""

    backbone: Name = "resnet18"
    """A torchvision model by name: resnet18, resnet50, vit_s_16, vit_b_16, ...; or a small one
    of ours: resnet10, resnet14, vit_n_2, ...; or timm/NAME, of the library timm
    (docs/experiments.md); or module:Class (docs/extending.md)."""
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    """ResNet's first layers: `cifar` is 3x3, stride 1, no max-pool; `auto` takes it up to 64 px."""
    stem_padding: int = Field(1, ge=1, le=2)
    """Padding of the CIFAR stem; the paper's reference code pads by 2."""
    sync_bn: bool = True
    """Batch statistics over the global batch, so that a run means the same at every world size."""
    frozen_patch: bool = False
    """Leave a vision transformer's patch projection at its random first values, as MoCo v3 does
    for stability (arXiv 2104.02057, sec. 4.2)."""
    init: str | None = Field(None, min_length=1)
    """Weights that the backbone starts from: a file (safetensors, or torch's), the folder of a run
    or an export, torchvision:NAME, timm:NAME, or FILE#PREFIX (docs/experiments.md);
    null = random."""


class ClassifierConfig(Section):
    """The continual classifier g on stopped features, and its term L_C^CT."""

    enabled: bool = True
    hidden: Width = 1000
    weight: Weight = 1.0
    """w_C"""
    stop_gradient: bool = True
    """false lets the labels teach the backbone too: supervised fine-tuning with `ssl_weight: 0`."""
    over: Literal["known", "all"] = "known"
    """Classes that its losses are over: those known so far, whose number grows with the stream, or
    (as in the paper) all classes of a closed stream, also those still to come."""
    logit_adjustment: Weight = 0.0
    """tau: its loss sees the logits with tau log(share of the class among the labels met in this
    task) on top, so that rare classes, such as the replayed ones, are not learnt to be rare
    (arXiv 2007.07314); 1 is the published value, 0 = off."""


class SuperviseConfig(Section):
    """Labels that teach the backbone beside the self-supervised loss, through an MLP that no export
    has (arXiv 2311.13321); unlabelled images are left out of its mean."""

    weight: Weight = 0.0
    """0 = off."""
    loss: Literal["cross_entropy", "contrastive"] = "cross_entropy"
    """Cross-entropy of cosines, or the supervised contrastive loss (arXiv 2004.11362)."""
    tasks: Literal["all", "first"] = "all"
    """Tasks whose labels teach."""
    hidden: Width = 2048
    dim: Width = 256
    """Width of the MLP's output."""
    temperature: Temperature = 0.1
    distill_weight: Weight = 1.0
    """Of the branch's own distillation, where `distill.features` is on."""
    distill_temperature: Temperature = 0.2


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
    """Rule that selects the images of a class to keep."""


class TrainConfig(Section):
    """Length, batch size and seed of the training."""

    epochs: Count = 500
    """Epochs of every task."""
    batch_size: Batch = 256
    """Images of the task in a step, over all ranks (replay comes on top)."""
    max_steps: Count | None = None
    """Stop every task after N steps, wherever its schedule stands."""
    seed: Seed = 0
    threads: Silent[Annotated[int, Field(ge=0, le=1024)]] = 0
    """CPU threads of a rank; 0 = the machine's cores divided by the ranks on it."""
    accumulate: Batch = 1
    """Micro-batches that a step is cut into, one after the other, to save memory. Batch statistics
    and negatives are then those of a micro-batch (of all ranks), a queue moves with each of them,
    and the step's loss and gradient are their mean."""
    lanes: Batch | None = None
    """Number of lanes of the order (docs/architecture.md); null = gcd of both batch sizes."""


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
    warmup_heads: float = Field(0, ge=0, le=10**9)
    """Epochs at the beginning of a run's first task in which its heads learn alone on the backbone
    that `model.init` gave it (docs/experiments.md); 0 = none."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Each layer of the backbone has the learning rate of the one above it times this, the topmost
    that of the projector times this; null = all have the same."""
    min_lr: Weight = 0.0
    """Where the cosine ends."""
    interval: Literal["epoch", "step"] = "epoch"
    """Whether the learning rate changes at each epoch, as published, or at each step."""
    clip_norm: Rate | None = None
    """Scale the gradient down to this norm, taken over all parameters, where it is longer."""


class EvalConfig(Section):
    """Evaluation after every task."""

    batch_size: Silent[Batch] = 256
    """Images of a rank in one forward pass."""
    knn: bool = True
    knn_k: Count = 20
    knn_temperature: Temperature = 0.07
    forward_transfer: bool = True
    """Linear probes on each task before it is learnt, and on the untrained backbone."""
    bank: Count = 5000
    """Most labelled training images for the kNN bank, or for a probe."""
    head: Literal["classifier", "ncm"] = "classifier"
    """Classification head used for evaluation and export: the trained classifier, or the nearest
    class mean (learner/ncm.py), which is not trained and does not prefer recent classes."""
    ncm: bool = False
    """Measure the nearest class mean as well."""
    shrinkage: float | None = Field(0.9, gt=0, le=1)
    """Of the covariance by which a mean is near, to the sphere; 1 = plain distance. null = this
    and a temperature by cross-validation on the task's images; a number comes without one."""
    drift_ridge: float | None = Field(None, gt=0, le=1e6)
    """How far a change of features counts as noise where means are carried along with it, against
    the mean square of a feature. null = 0.02, and replayed images weigh by their rareness."""
    oracle: bool = False
    """Measure the same head refitted on all past training images too: what there is left to win
    without better features. Each task then takes a pass over all tasks before it."""
