"""A prepared stream, in a folder or at a URL: its manifest, its tasks and their splits.

STREAM/stream.json                 the manifest; written last: what it lists is complete
STREAM/task-00/train-000000.tar    shards and indices, see shards.py
STREAM/task-00/train.index.npy
STREAM/task-00/train.names.jsonl   original names, see names.py
STREAM/task-00/val-000000.tar ...
STREAM/labels-000000.npy           labels that came later, see late_labels.py
STREAM/.prepare/                   only while tasks are being prepared
"""

import hashlib
import io
import os
import stat
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import ValidationError

from kaizen_dist.common.console import ProgressBar
from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import DOCUMENT_LIMIT, parse_json, read_bytes
from kaizen_dist.common.io_watchdog import waiting_for
from kaizen_dist.config.schema import StreamConfig
from kaizen_dist.stream.cache import Cache, CachedFolder, default_cache_dir
from kaizen_dist.stream.field_errors import field_errors, shortened
from kaizen_dist.stream.index import index_name, joined, max_index_bytes
from kaizen_dist.stream.late_labels import read_labels
from kaizen_dist.stream.manifest_entries import PARTS, Part, StreamState, TaskInfo
from kaizen_dist.stream.manifest_schema import FORMAT_VERSION, StreamManifest
from kaizen_dist.stream.manifest_v1 import from_v1
from kaizen_dist.stream.reader import Facts, Folder, Storage, named
from kaizen_dist.stream.remote import Remote, is_url
from kaizen_dist.stream.shards import Split

MANIFEST = "stream.json"
WORK_FOLDER = ".prepare"
_SHOWN = 50


class Stream:
    """A prepared stream, open for reading; `len()` is its number of tasks."""

    def __init__(
        self,
        root: Path | Remote,
        manifest: StreamManifest,
        storages: Sequence[Storage],
        labels: Sequence[NDArray[Any]] = (),
    ) -> None:
        self.root, self.manifest = root, manifest
        self._storages, self._labels = storages, labels
        """Storages one a task, and the labels that came later."""
        self.fingerprint: str = manifest.fingerprint
        """By which a run recognises its stream, wherever it lies: sha256 in hex, see
        `StreamManifest.chain`."""
        self.classes: list[str] = manifest.classes
        self.num_classes: int = len(manifest.classes)
        self.seed: int = manifest.additions[0].settings.seed
        self._use_labels(len(labels))

    def _use_labels(self, given: int) -> None:
        self.given = given
        """How many of the labels that came later it goes by."""
        self.tasks: list[TaskInfo] = self.manifest.tasks_by(given)
        self._late = joined(self._labels[:given])

    def by_labels(self, given: int) -> "Stream":
        """The same stream by the first `given` of the labels that came later."""
        stream = copy(self)
        stream._use_labels(given)
        return stream

    def by_all_labels(self) -> "Stream":
        """The same stream by all labels that have come."""
        return self.by_labels(len(self._labels))

    @classmethod
    def open(cls, place: str | Path, config: StreamConfig | None = None) -> "Stream":
        """Opens the stream in a folder or at a URL; without `config` as by its defaults.

        In a folder it checks the size of every file, reading none. From a URL, or where
        the configuration names a cache, it fetches the indices now and shards when they are read.

        Raises DataError when the stream is missing, unfinished, of another format version, or when
        files are missing or of the wrong size; all are named.
        """
        config = config or StreamConfig()
        root = Remote(str(place)) if is_url(place) else Path(place)
        manifest = load_manifest(root)
        if isinstance(root, Path) and (problems := missing_files(root, manifest)):
            raise DataError(
                f"the stream {root} is damaged:{listed_problems(problems)}\n"
                "restore these files, or delete the folder and run `kaizen-dist prepare` again"
            )
        storages: Sequence[Storage]
        if isinstance(root, Path) and config.cache_dir is None:
            storages = [Folder(root / task.folder) for task in manifest.tasks]
        else:
            remote = Remote(str(root)) if isinstance(root, Path) else root
            storages = _cached_folders(remote, manifest, config)
        labels = [read_labels(root, n, entry) for n, entry in enumerate(manifest.labels)]
        return cls(root, manifest, storages, labels)

    @property
    def upright(self) -> bool:
        """Whether images were turned as their EXIF orientation says."""
        return self.manifest.additions[0].settings.upright

    @property
    def scenario(self) -> str:
        """That of its tasks; "mixed" where they were added under several."""
        found = {addition.settings.scenario for addition in self.manifest.additions}
        return found.pop() if len(found) == 1 else "mixed"

    @property
    def source(self) -> str:
        """The source of its first tasks, and how many more there are."""
        specs = list(dict.fromkeys(a.settings.source for a in self.manifest.additions))
        return specs[0] if len(specs) == 1 else f"{specs[0]} and {len(specs) - 1} more"

    def begins_with(self, fingerprint: str, tasks: int) -> bool:
        """Whether its first tasks are those of a stream that had this fingerprint."""
        return StreamState(tasks, fingerprint) in self.manifest.chain

    def known_classes(self, task: int) -> int:
        """How many classes have a number in a task (0 is the first) or before it."""
        return self.manifest.known_classes(task, self.given)

    def unseen(self, task: int) -> tuple[int, ...]:
        """Those among them whose classes no task so far has; see `KnownClasses.unseen`."""
        return tuple(sorted(set(range(self.known_classes(task))) - set(self.seen(task))))

    def seen(self, task: int) -> list[int]:
        """The numbers, ascending, of the classes of a task and of those before it."""
        return sorted({label for info in self.tasks[: task + 1] for label in info.classes})

    @property
    def place(self) -> str:
        """Its absolute path, or its URL."""
        return str(self.root.resolve() if isinstance(self.root, Path) else self.root)

    def __len__(self) -> int:
        return len(self.tasks)

    def split(self, task: int, part: Part) -> Split:
        """The training or validation samples of a task (0 is the first).

        Raises DataError when the index is damaged or has another number of rows than it should.
        """
        info, storage = self.tasks[task], self._storages[task]
        facts = index_facts(info, part)
        split = Split.open(storage.path, part, info.shards_of(part), storage, facts)
        split = self.relabelled(split)
        if len(split) != info.count(part):
            raise DataError(
                f"{storage.shown(index_name(part))}: {len(split)} rows, but stream.json "
                f"counts {info.count(part)}; `kaizen-dist verify` lists all that is damaged"
            )
        return split

    def relabelled(self, split: Split) -> Split:
        """Samples of this stream, also those that a run keeps, by the labels that came later."""
        return split.relabelled(self._late)

    def check_labels(self) -> None:
        """That every label is one of its task's classes; reads all indices.

        Raises DataError naming the index where it is not.
        """
        for number, (task, storage) in enumerate(zip(self.tasks, self._storages, strict=True)):
            for part in PARTS:
                if problems := task.wrong_labels(part, self.split(number, part).labels):
                    raise DataError(
                        f"{storage.shown(index_name(part))}: {problems[0]}; `kaizen-dist verify` "
                        "lists all that is damaged, then prepare the stream again"
                    )


def index_facts(task: TaskInfo, part: Part) -> Facts:
    """What the manifest says of the index of a part."""
    return Facts(sha256=task.index_sha256[part], most=max_index_bytes(task.count(part)))


def _cached_folders(
    remote: Remote, manifest: StreamManifest, config: StreamConfig
) -> list[CachedFolder]:
    """The tasks' folders, read through this node's cache, with their indices fetched."""
    folder = default_cache_dir() if config.cache_dir is None else Path(config.cache_dir)
    cache = Cache(folder, int(config.cache_gb * 1e9))
    tasks = manifest.tasks
    # By the fingerprint after its task: what is cached stays when the stream grows.
    folders = [
        CachedFolder(cache, remote, fingerprint, task.folder)
        for task, fingerprint in zip(tasks, manifest.task_fingerprints, strict=True)
    ]
    with ProgressBar("fetching the indices", len(PARTS) * len(tasks), "files") as bar:
        for task, cached in zip(tasks, folders, strict=True):
            for part in PARTS:
                cached.open(index_name(part), index_facts(task, part))
                bar.advance()
    return folders


def load_manifest(root: Path | Remote) -> StreamManifest:
    """The manifest of the stream in `root`.

    Raises DataError when it is missing, unfinished, of another version or not valid.
    """
    if isinstance(root, Remote):
        received = io.BytesIO()
        root.fetch(MANIFEST, received, Facts(most=DOCUMENT_LIMIT))
        return _parse_manifest(received.getvalue(), root.shown(MANIFEST))
    path = root / MANIFEST
    try:
        with waiting_for(path):
            raw = read_bytes(path)
    except (OSError, ValueError) as error:  # of a path that no file can have
        raise DataError(_why_missing(root, error)) from None
    return _parse_manifest(raw, str(path))


def _parse_manifest(raw: bytes, path: str) -> StreamManifest:
    try:
        content = parse_json(raw)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); restore it or prepare again") from None
    if not isinstance(content, dict) or "format_version" not in content:
        raise DataError(f"{path}: not a stream's manifest: it has no format_version")
    version = content["format_version"]
    try:
        if version == 1:
            return from_v1(content, hashlib.sha256(raw).hexdigest())
        if version == FORMAT_VERSION:
            return StreamManifest.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path}: damaged: {field_errors(error)}") from None
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from None
    raise DataError(
        f"{path}: format version {shortened(version)}, this program reads versions 1 and "
        f"{FORMAT_VERSION}; prepare the stream again, or use the program that wrote it"
    )


def missing_files(root: Path, manifest: StreamManifest) -> list[str]:
    """A line for every shard or index that is not there, and every shard of a wrong size."""
    problems = []
    for task in manifest.tasks:
        files = [(shard.name, shard.bytes) for shard in task.shards]
        for name, bytes in [*files, *((index_name(part), None) for part in PARTS)]:
            path = root / task.folder / name
            try:
                with waiting_for(path):
                    status = path.stat()
            except OSError as error:
                problems.append(f"{named(path)}: {error.strerror}")
                continue
            if not stat.S_ISREG(status.st_mode):
                problems.append(f"{named(path)}: not a regular file")
            elif bytes not in (None, status.st_size):
                problems.append(f"{named(path)}: {status.st_size:,} bytes, should be {bytes:,}")
    return problems


def listed_problems(problems: Sequence[str]) -> str:
    """A line for each problem, of very many for the first ones."""
    listed = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    more = len(problems) - _SHOWN
    return f"{listed}\n  and {more} more" if more > 0 else listed


def _why_missing(root: Path, error: OSError | ValueError) -> str:
    if os.path.isdir(root / WORK_FOLDER):  # noqa: PTH112 - of no path does it raise
        return (
            f"the stream {root} is unfinished: its preparation was interrupted; run the same "
            "`kaizen-dist prepare` command again, it goes on where it was"
        )
    if ":/" in str(root):
        return f"{root}: only `train` and `inspect` read streams at URLs; give a folder"
    if not os.path.exists(root):  # noqa: PTH110
        shown = shortened(root)
        return (
            f"there is no stream {shown}; make one with `kaizen-dist prepare SOURCE --out {shown}`"
        )
    if not os.path.lexists(root / MANIFEST):
        return (
            f"{root} is not a stream: it holds no {MANIFEST}; "
            "give the folder that `kaizen-dist prepare` wrote"
        )
    return f"{root / MANIFEST}: cannot be read: {getattr(error, 'strerror', None) or error}"
