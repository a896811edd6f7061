"""`results.json`: what a run has measured so far, rewritten whole after every task.

Fractions lie in [0, 1]; null means "not measured", never 0.
"""

import json
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kaizen_dist.config import Config
from kaizen_dist.engine.process import Process
from kaizen_dist.evaluation import metrics
from kaizen_dist.files import atomic_write
from kaizen_dist.learner.flops import step_flops
from kaizen_dist.stream.manifest import Stream

FILE = "results.json"

Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Signed: TypeAlias = Annotated[float, Field(ge=-1, le=1)]
Row: TypeAlias = list[Fraction | None]


class StreamSummary(BaseModel):
    """Enough of the stream to read the results without it."""

    model_config = ConfigDict(extra="forbid")

    path: str
    fingerprint: str
    scenario: str
    source: str
    tasks: Annotated[int, Field(ge=1)]
    classes: int
    train_counts: list[int]
    val_counts: list[int]


class DistillSwitches(BaseModel):
    """Which retention terms were on."""

    model_config = ConfigDict(extra="forbid")

    features: bool
    classifier: bool


class Results(BaseModel):
    """Row t of a matrix is measured after task t, column i on task i."""

    model_config = ConfigDict(extra="forbid")

    accuracy: list[Row] = Field(default_factory=list)
    """Of the continual classifier over all classes seen so far, no task identity given."""
    knn: list[Row] = Field(default_factory=list)
    linear: list[Row] | None = None
    ncm: list[Row] | None = None
    """Of the nearest class mean, with `eval.ncm`."""
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
    world_size: int
    images_per_second: float | None = None
    """Task images (replay not counted) per second of training, over all ranks."""
    wall_seconds: float = 0.0
    teacher_share: Fraction | None = None
    """Of the floating-point operations of a step that has a teacher, those that are its own;
    counted, not timed (learner/flops.py)."""
    stream: StreamSummary
    task_classes: list[list[str]]
    seed: int
    config_sha256: str
    state_sha256: str | None = None
    finished: bool = False

    @model_validator(mode="after")
    def _matrices_fit(self) -> "Results":
        tasks = self.stream.tasks
        for name in ("accuracy", "knn", "linear", "ncm"):
            matrix: list[Row] | None = getattr(self, name)
            if matrix is None:
                continue
            if len(matrix) != len(self.accuracy) or len(matrix) > tasks:
                raise ValueError(f"{name} has {len(matrix)} rows; the stream has {tasks} tasks")
            for t, row in enumerate(matrix):
                if not t < len(row) <= tasks:
                    raise ValueError(
                        f"{name}, row {t}: {len(row)} columns, needs {t + 1} to {tasks}"
                    )
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
        atomic_write(run / FILE, content.encode())


def fresh_results(config: Config, stream: Stream, process: Process) -> Results:
    """Results of a run that has measured nothing yet."""
    tasks = stream.tasks
    return Results(
        method=config.method,
        distill=DistillSwitches(
            features=config.distill.features, classifier=config.distill.classifier
        ),
        classifier=config.classifier.enabled or config.eval.head == "ncm",
        ncm=[] if config.eval.ncm else None,
        replay_fraction=config.replay.fraction,
        world_size=process.world_size,
        teacher_share=step_flops(config, stream.num_classes).teacher_share,
        stream=StreamSummary(
            path=str(stream.root),
            fingerprint=stream.fingerprint,
            scenario=stream.scenario,
            source=stream.manifest.source,
            tasks=len(tasks),
            classes=stream.num_classes,
            train_counts=[len(stream.split(t, "train")) for t in range(len(tasks))],
            val_counts=[len(stream.split(t, "val")) for t in range(len(tasks))],
        ),
        task_classes=[[stream.classes[c] for c in task.classes] for task in tasks],
        seed=config.train.seed,
        config_sha256=config.sha256,
    )
