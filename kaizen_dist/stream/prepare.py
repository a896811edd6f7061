"""`prepare` and `extend`: what a person asks for, checked, and added to a stream.

`prepare` is the first `extend`: a stream whose tasks were added one by one is the stream that was
prepared at once, byte for byte.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.add_tasks import HowToWrite, add_tasks
from kaizen_dist.stream.field_errors import field_errors
from kaizen_dist.stream.manifest import MANIFEST, WORK_FOLDER, Stream, load_manifest
from kaizen_dist.stream.manifest_entries import TASKS_GIVEN, Settings
from kaizen_dist.stream.manifest_schema import StreamManifest
from kaizen_dist.stream.sources import has_tasks, in_tars, resolve_spec, source_stamp
from kaizen_dist.stream.work_folder import check_same, clear_finished

DEFAULT_TASKS = 5


def prepare(
    source_spec: str,
    out: str | Path,
    *,
    scenario: str | None = None,
    tasks: int | None = None,
    seed: int = 5,
    val_fraction: float = 0.2,
    labels: float = 1.0,
    resize: int | None = None,
    upright: bool = True,
    shard_size: int = 2000,
    domain_order: list[str] | None = None,
    classes_per_task: list[list[str]] | None = None,
    link: bool = False,
    workers: int = 1,
    max_bad: float = 0.001,
    skip_bad: bool = False,
    worker: tuple[int, int] | None = None,
    progress: bool = True,
) -> Stream:
    """Write the stream `out`, or finish it, or find it finished and do nothing.

    Args:
        source_spec: see sources/.
        scenario: None: "task" where the source has tasks of its own, else "class".
        seed, val_fraction, labels, resize, upright, shard_size, domain_order, link: see `Settings`.
        tasks: their number; None: 5, or as many as the source has domains or tasks.
        classes_per_task: the classes of each task, in place of `tasks`.
        workers, max_bad, skip_bad, worker, progress: see `HowToWrite`.

    Raises:
        UsageError: for bad settings, where `out` holds another stream or other files, or where
            the source of a finished stream has changed.
        DataError: for a source that is missing, damaged, changed meanwhile, or has too many bad
            images.
        WriteError: when the disk is full or may not be written.
        KaizenError: when a worker process dies.
    """
    scenario = scenario or _scenario_of(source_spec, classes_per_task)
    settings = _settings(
        source=resolve_spec(source_spec),
        scenario=scenario,
        tasks_wanted=_number_of_tasks(scenario, tasks, classes_per_task),
        seed=seed,
        val_fraction=val_fraction,
        labels=labels,
        resize=resize,
        upright=upright,
        shard_size=shard_size,
        domain_order=domain_order,
        classes=classes_per_task,
        link=link,
    )
    how, root = HowToWrite(workers, max_bad, progress, skip_bad, worker), Path(out)
    if _is_finished(root, settings):
        clear_finished(root)
    else:
        add_tasks(root, settings, None, how)
    return Stream.open(root)


def _number_of_tasks(
    scenario: str, tasks: int | None, classes_per_task: list[list[str]] | None
) -> int | None:
    if classes_per_task is None:
        return DEFAULT_TASKS if tasks is None and scenario not in TASKS_GIVEN else tasks
    if tasks not in (None, len(classes_per_task)) or scenario != "class":
        raise UsageError(
            "classes for each task go with the scenario class, and say how many tasks there are"
        )
    return len(classes_per_task)


def extend(
    stream: str | Path,
    source_spec: str,
    *,
    scenario: str | None = None,
    tasks: int | None = None,
    classes: list[str] | None = None,
    name: str | None = None,
    val_fraction: float | None = None,
    labels: float | None = None,
    resize: int | None = None,
    domain_order: list[str] | None = None,
    link: bool = False,
    workers: int = 1,
    max_bad: float = 0.001,
    skip_bad: bool = False,
    worker: tuple[int, int] | None = None,
    progress: bool = True,
) -> Stream:
    """Add tasks at the end of a stream; images of this source that it has already are left out.

    New classes get the next numbers, known ones are met again by their names. Trainings on the
    stream are not disturbed: they see the new tasks when their next task begins.

    Args:
        stream: its folder.
        source_spec, scenario, domain_order, link: as for `prepare`.
        tasks: their number; None: 1, or as many as the source has domains or tasks.
        classes: take these classes of the source only; several tasks share them in this order.
        name: of the new tasks, in place of "task N".
        val_fraction, labels, resize: as for `prepare`; None: as the stream was begun.
        workers, max_bad, skip_bad, worker, progress: see `HowToWrite`.

    Raises:
        As `prepare`.
    """
    root, how = Path(stream), HowToWrite(workers, max_bad, progress, skip_bad, worker)
    manifest = load_manifest(root)
    first = manifest.additions[0].settings
    scenario = scenario or _scenario_of(source_spec)
    wanted = 1 if tasks is None and scenario not in TASKS_GIVEN else tasks
    given = {"val_fraction": val_fraction, "labels": labels, "resize": resize}
    settings = _settings(
        source=resolve_spec(source_spec),
        scenario=scenario,
        tasks_wanted=wanted,
        seed=first.seed,
        shard_size=first.shard_size,
        upright=first.upright,
        domain_order=domain_order,
        classes=None if classes is None else _shared_out(classes, scenario, wanted),
        name=name,
        link=link,
        **{key: getattr(first, key) if value is None else value for key, value in given.items()},
    )
    add_tasks(root, settings, manifest, how)
    return Stream.open(root)


def _scenario_of(source_spec: str, classes_per_task: list[list[str]] | None = None) -> str:
    return "task" if classes_per_task is None and has_tasks(source_spec) else "class"


def _shared_out(classes: list[str], scenario: str, tasks: int | None) -> list[list[str]]:
    """The classes of each task, or for all tasks."""
    if scenario != "class" or tasks is None:
        return [classes]
    if tasks > len(classes):
        raise UsageError(f"{tasks} tasks of {len(classes)} classes: at most one task a class")
    return [part.tolist() for part in np.array_split(np.array(classes, object), tasks)]


def _settings(**given: Any) -> Settings:
    """The settings, or a UsageError naming every bad one."""
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise UsageError(field_errors(error).replace("tasks_wanted", "tasks")) from None
    if settings.domain_order is not None and settings.scenario != "domain":
        raise UsageError("an order of domains goes with the scenario domain only")
    if settings.link:
        _check_link(settings)
    return settings


def _check_link(settings: Settings) -> None:
    """Raises UsageError where no tars are to be linked as they are."""
    if not in_tars(settings.source):
        raise UsageError(
            f"--link reads tars where they lie, so it goes with webdataset:PATTERN; images of "
            f"{settings.source} are copied: leave out --link"
        )
    if settings.resize is not None:
        raise UsageError(
            f"--link leaves images as they lie in their tars, and cannot resize them (to "
            f"{settings.resize} pixels here): leave out --link, or --resize if it is given"
        )


def _is_finished(root: Path, settings: Settings) -> bool:
    """Whether `root` is this stream already. Raises UsageError if it is anything but a stream,
    finished or not, of these settings, or if their source has changed."""
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file; give a folder for the stream")
    if (root / MANIFEST).exists():
        manifest = load_manifest(root)
        check_same(root, manifest.additions[0].settings, settings)
        _check_source(root, manifest)
        return True
    if root.exists() and any(root.iterdir()) and not (root / WORK_FOLDER).is_dir():
        raise UsageError(f"{root} is not empty and no stream; give an empty or a new folder")
    return False


def _check_source(root: Path, manifest: StreamManifest) -> None:
    """Raises UsageError when the source of a finished stream has changed since tasks were last made
    from it. Not checked: streams of format 1, and sources that are gone."""
    spec = manifest.additions[0].settings.source
    noted = [a.source_stamp for a in manifest.additions if a.settings.source == spec][-1]
    if noted is None:
        return
    try:
        found, why = source_stamp(spec), ""
    except DataError as error:
        found, why = "", f" ({error})"
    if found is not None and found != noted:
        raise UsageError(
            f"the source {spec} has changed since {root} was made from it{why}: `kaizen-dist "
            f"extend {root} {spec}` adds what is new as a task; or give another --out"
        )
