"""`results.json`: the metrics of a run so far, rewritten after every task.

Fractions lie in [0, 1]; null means "not measured", never 0.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from kaizen_dist.common.files import atomic_write
from kaizen_dist.common.inventory import StrictModel
from kaizen_dist.common.run_layout import RESULTS
from kaizen_dist.evaluation import metrics

Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Signed: TypeAlias = Annotated[float, Field(ge=-1, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Row: TypeAlias = list[Fraction | None]


class StreamSummary(StrictModel):
    """The facts of the stream that reading the results needs."""

    path: str
    """Its folder from the root on, or its URL."""
    fingerprint: str
    scenario: str
    source: str
    tasks: Annotated[int, Field(ge=1, le=1_000_000)]
    classes: Count
    train_counts: list[Count]
    val_counts: list[Count]
    upright: bool = False
    """Whether images were turned as their EXIF orientation says; earlier versions turned none."""


class DistillSwitches(StrictModel):
    """Which retention terms were on."""

    features: bool
    classifier: bool


class StartedFrom(StrictModel):
    """What a run's backbone started from, by `model.init`."""

    source: str
    sha256: str | None = None
    """Of the file, or of the tensors by name that timm has; null where torchvision checked it."""
    loaded: Count
    """Tensors."""
    resized: list[str] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list)
    """Tensors that were not there, and are random."""
    left_over: list[str] = Field(default_factory=list)
    """Tensors that the backbone has no place for."""


class Results(StrictModel):
    """Row t of a matrix is measured after task t, column i on task i."""

    accuracy: list[Row] = Field(default_factory=list)
    """Accuracy of the continual classifier over all classes seen so far, without task identity."""
    knn: list[Row] = Field(default_factory=list)
    ncm: list[Row] | None = None
    """Accuracy of the nearest class mean, with `eval.ncm`."""
    oracle: list[Row] | None = None
    """Of class means of all past training images, with `eval.oracle`."""
    calibration: Row = Field(default_factory=list)
    """Expected calibration error of the classifier after each task, on all tasks up to it."""
    final_accuracy: Fraction | None = None
    final_accuracy_weighted: Fraction | None = None
    continual_accuracy: Fraction | None = None
    forgetting: Signed | None = None
    forward_transfer: Signed | None = None
    probe_before: Row = Field(default_factory=list)
    """Linear probe for each task on the backbone as it was before that task."""
    probe_random: Row = Field(default_factory=list)
    """The same probe on the untrained backbone."""
    method: str
    distill: DistillSwitches
    classifier: bool
    replay_fraction: Fraction
    replay_order: Literal[1, 2] = 1
    """Version of the order in which it replays, from its beginning to its end
    (stream/replay_order.py); earlier versions, which did not say so, had the first."""
    world_size: Annotated[int, Field(ge=1)]
    views_backend: Literal["dali", "torch"] | None = None
    """Backend of the last views, also where `views.backend=auto` chose it."""
    images_per_second: Annotated[float, Field(ge=0)] | None = None
    """Task images (replay not counted) per second of training, over all ranks."""
    wall_seconds: Annotated[float, Field(ge=0)] = 0.0
    started_from: StartedFrom | None = None
    teacher_share: Fraction | None = None
    """The teacher's share of a step's floating-point operations; counted, not timed
    (learner/flops.py)."""
    stream: StreamSummary
    task_classes: list[list[str]]
    late_labels: list[Count] = Field(default_factory=list)
    """Of each task that has begun, how many of the labels that came later it was learnt by."""
    seed: Count
    config_sha256: str
    state_sha256: str | None = None
    finished: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_older_versions(cls, values: Any) -> Any:
        """Those had a place for a matrix of linear probes that nothing ever filled."""
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if key != "linear"}

    @model_validator(mode="after")
    def _fits_together(self) -> "Results":
        tasks = self.stream.tasks
        counts = {"train_counts": self.stream.train_counts, "val_counts": self.stream.val_counts}
        for name, values in (counts | {"task_classes": self.task_classes}).items():
            if len(values) != tasks:
                raise ValueError(f"{name}: not of {tasks} tasks")
        measured = {"accuracy": self.accuracy, "knn": self.knn, "ncm": self.ncm}
        measured |= {"oracle": self.oracle}
        for name, matrix in measured.items():
            if matrix is None:
                continue
            if len(matrix) != len(self.accuracy) or len(matrix) > tasks:
                raise ValueError(f"{name} has {len(matrix)} rows; the stream has {tasks} tasks")
            for t, row in enumerate(matrix):
                if not t < len(row) <= tasks:
                    raise ValueError(
                        f"{name}, row {t}: {len(row)} columns, needs {t + 1} to {tasks}"
                    )
        if self.finished and len(self.accuracy) != tasks:
            raise ValueError(f"finished, with {len(self.accuracy)} of {tasks} tasks measured")
        return self

    def update_metrics(self) -> None:
        """FA, CA, F and FT from the rows there are."""
        sizes = self.stream.val_counts
        self.final_accuracy = metrics.final_accuracy(self.accuracy)
        self.final_accuracy_weighted = metrics.weighted_final_accuracy(self.accuracy, sizes)
        self.continual_accuracy = metrics.continual_accuracy(self.accuracy)
        self.forgetting = metrics.forgetting(self.accuracy)
        self.forward_transfer = metrics.forward_transfer(self.probe_before, self.probe_random)

    def write(self, run: Path) -> None:
        """Replace RUN/results.json in one step.

        Raises:
            WriteError: if the folder cannot be written.
        """
        content = json.dumps(self.model_dump(mode="json"), indent=1) + "\n"
        atomic_write(run / RESULTS, content.encode())
