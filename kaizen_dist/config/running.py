"""Sections that decide where a run gets its images from, where it runs and what it leaves."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from kaizen_dist.config.base import Count, Gigabytes, Name, Seconds, Section, Share, Silent, Threads


class StreamConfig(Section):
    """Cache on this node for a stream that lies elsewhere (docs/data.md)."""

    cache_dir: Name | None = None
    """A folder on a disk of this node; null = in the user's cache folder, and for a stream on a
    path none at all."""
    cache_gb: Annotated[Gigabytes, Field(gt=0)] = 50.0
    """Largest size of the cache in GB (1e9 bytes), over all streams and runs of the node."""


_Ratio: TypeAlias = Annotated[float, Field(ge=0.01, le=100)]
_Deviation: TypeAlias = Annotated[float, Field(ge=1e-3, le=10)]


class ViewsConfig(Section):
    """The augmentation recipe. A pair of values is for the first and the second view."""

    backend: Silent[Literal["auto", "dali", "torch"]] = "auto"
    """Library that makes the views; `auto` is DALI where it is installed. They are equal up to
    rounding."""
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
    workers: Silent[Threads] = 2
    """Threads of a rank that decode and crop."""
    prefetch: Silent[Annotated[int, Field(ge=1, le=1024)]] = 3
    """Batches made ahead of need."""
    memory_budget: Silent[Gigabytes] = 0.0
    """Gigabytes of a rank (of its GPU where DALI decodes there): a task whose images, decoded and
    with their replay, fit in stays in memory; 0 = none does. The views are the same."""
    max_bad: Silent[Share] = 0.001
    """Share of a task's images (replay included) that may fail to decode, as `prepare --max-bad`:
    each is named and replaced (docs/architecture.md); more of them end the run."""
    stall_seconds: Silent[Seconds] = 60.0
    """A file operation that takes longer is reported on standard error."""


class ParallelConfig(Section):
    """Ranks, precision and memory."""

    engine: Silent[Literal["ddp", "fsdp", "deepspeed"]] = "ddp"
    """Library that spreads the model over the ranks (docs/engines.md): every rank holds all of it
    (`ddp`), a part of it (`fsdp`), or as much as `zero_stage` says (`deepspeed`)."""
    zero_stage: Silent[int] = Field(1, ge=0, le=3)
    """What `deepspeed` cuts over the ranks: 0 nothing, 1 the optimizer's state, 2 the gradients as
    well, 3 the parameters (also those of momentum network and teacher) as well."""
    deepspeed_config: Silent[Name | None] = None
    """A JSON file in DeepSpeed's own format whose settings of speed and memory are taken over."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What networks compute in while they train. Weights, batch statistics, losses, optimizer
    and evaluation are fp32 throughout."""
    tf32: bool = True
    """On a GPU, multiply float32 numbers as TF32, in convolutions and matrix products alike:
    several times as fast, with 10 bits of mantissa in place of 23. false: in neither."""
    deterministic: Silent[bool] = True
    """On a GPU, use algorithms only that give the same bits every time, so that a run that was
    killed goes on bit for bit. A CPU's do anyway."""
    activation_checkpointing: Silent[bool] = False
    """Compute the backbone's inner activations a second time in the backward pass, instead of
    keeping them: less memory, a third more time, the same values."""
    compile: Silent[bool] = False
    """Compile the backbones with torch.compile; the first steps then take minutes."""
    cuda_graphs: Silent[bool] = False
    """On a GPU, replay the compiled passes of momentum network and teacher as CUDA graphs: the same
    values up to rounding. Only with `compile` and engine `ddp`. It can pay where launching kernels
    takes longer than computing them: few images a GPU."""
    side_stream: Silent[bool] = False
    """On a GPU, let the teacher compute on a stream beside the student's: the same values. Only
    with engine `ddp`. It pays where one network alone does not fill the GPU."""
    keep_memory: Silent[bool] = True
    """On a CPU, keep what a step frees for the next one, which is quicker; false returns it to the
    system, so that a run takes no more than it needs at a time."""
    timeout_seconds: Silent[Seconds] = 300.0
    """A collective that takes longer ends the run, and so do ranks that have not met by then."""
    silence_seconds: Silent[Seconds] = 30.0
    """A rank whose heartbeat stops for so long is taken for dead, and all others end; so does one
    that hears of nobody any more."""


class CheckpointConfig(Section):
    """When the state is saved (always before and after a task's evaluation), and what stays."""

    every_steps: int = Field(0, ge=0, le=10**9)
    """Also every N steps within a task; 0 = only at its end."""
    keep_last: Count = 2
    """Checkpoints that stay; an older one stands in for a newest that is damaged."""
    keep_every: int = Field(0, ge=0, le=10**9)
    """Keep for good the checkpoints at multiples of N steps within a task, and those between
    tasks; 0 = none."""
    asynchronous: bool = True
    """Write in the background; false waits for every save."""
    max_failures: Count = 3
    """End the run after N consecutive saves have failed."""
    grace_seconds: Seconds = 60.0
    """Time that SIGTERM, SIGUSR1 or SIGUSR2 leaves for a last checkpoint."""


class LogConfig(Section):
    every_steps: Count = 10
    """Write a row into events.jsonl, and to the loggers, every N steps."""
    to: tuple[Name, ...] = ("tensorboard",)
    """Loggers beside events.jsonl: tensorboard, wandb, mlflow, or module:Class
    (docs/extending.md)."""
