"""A prepared stream: its manifest `stream.json`, and `Stream`, by which the house reads it.

    STREAM/stream.json                 Manifest: written last, so that its presence says "whole"
    STREAM/task-00/train-000000.tar    shards and indices, see shards.py
    STREAM/task-00/train.index.npy
    STREAM/task-00/val-000000.tar ...
    STREAM/.prepare/                   only while it is being prepared

In comes a folder or a URL, out come its tasks, their classes and their splits.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kaizen_dist.config.schema import StreamConfig
from kaizen_dist.errors import DataError
from kaizen_dist.stream.cache import Cache, CachedFolder, default_cache_dir
from kaizen_dist.stream.index import index_name
from kaizen_dist.stream.progress import Meter
from kaizen_dist.stream.remote import Remote, is_url
from kaizen_dist.stream.shards import SHA256, ShardInfo, Split
from kaizen_dist.stream.stall import waiting_for
from kaizen_dist.stream.storage import UNKNOWN, Facts, Folder, Storage

FORMAT_VERSION: Final = 1
MANIFEST = "stream.json"
WORK_FOLDER = ".prepare"

Part: TypeAlias = Literal["train", "val"]
PARTS: tuple[Part, Part] = ("train", "val")
Scenario: TypeAlias = Literal["class", "data", "domain"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(_Model):
    """What a stream is prepared from; the same settings and source give the same bytes."""

    format_version: Literal[1] = FORMAT_VERSION
    source: str
    scenario: Scenario = "class"
    tasks_wanted: int | None = Field(None, ge=1)
    """None: as many as the source has domains."""
    seed: int = Field(5, ge=0, lt=2**63)
    val_fraction: float = Field(0.2, ge=0, lt=1)
    """Held out of the training part where the source has no validation part."""
    labels: float = Field(1.0, ge=0, le=1)
    """Share of the training images that keep their label, per class."""
    resize: int | None = Field(None, ge=1)
    """Pixels of the shorter side of larger images; None: original bytes."""
    shard_size: int = Field(2000, ge=1)
    domain_order: list[str] | None = None


class BadImage(_Model):
    """An image that does not decode and was left out."""

    id: int
    name: str
    reason: str


class TaskInfo(_Model):
    """One task: what is in it, and in which files."""

    folder: str = Field(pattern=r"^[\w-]+$")
    name: str
    classes: list[int]
    """The classes whose images appear in it, in the order of the scenario."""
    train: int
    val: int
    labelled: int
    """Training images with a label."""
    shards: list[ShardInfo]
    index_sha256: dict[Part, Annotated[str, Field(pattern=SHA256)]]

    def shards_of(self, part: Part) -> list[ShardInfo]:
        """The shards of one part, in order."""
        return [shard for shard in self.shards if shard.name.startswith(f"{part}-")]


class Counts(_Model):
    """Images of the whole stream; `ignored` counts the source's files that are no images."""

    train: int
    val: int
    labelled: int
    bad: int
    ignored: int


class Manifest(Settings):
    """The content of `stream.json`."""

    classes: list[str]
    counts: Counts
    tasks: list[TaskInfo]
    bad: list[BadImage]

    @property
    def settings(self) -> Settings:
        """The part of it that was asked for."""
        return Settings(**self.model_dump(include=set(Settings.model_fields)))


class Stream:
    """A prepared stream, open for reading; `len()` is its number of tasks."""

    def __init__(
        self,
        root: Path | Remote,
        manifest: Manifest,
        fingerprint: str,
        storages: Sequence[Storage],
    ) -> None:
        self.root, self.manifest, self.fingerprint = root, manifest, fingerprint
        self._storages = storages
        """One a task."""
        self.classes: list[str] = manifest.classes
        self.num_classes: int = len(manifest.classes)
        self.tasks: list[TaskInfo] = manifest.tasks
        self.scenario: Scenario = manifest.scenario
        self.seed: int = manifest.seed

    @classmethod
    def open(cls, place: str | Path, config: StreamConfig | None = None) -> "Stream":
        """Opens the stream in a folder or at a URL; without `config` as by its defaults.

        In a folder it looks at the size of every file, reading none. From a URL, or where
        the configuration names a cache, it fetches the indices, and shards when they are read.

        `fingerprint` is the sha256 of stream.json in hex: by it a run knows its stream again,
        wherever it lies. Raises DataError when the stream is missing, unfinished, of another
        format version, or when a file is missing or of the wrong size; all such are named.
        """
        config = config or StreamConfig()
        if is_url(place):
            remote = Remote(str(place))
            manifest, fingerprint = fetch_manifest(remote)
            return cls._cached(remote, remote, manifest, fingerprint, config)
        root = Path(place)
        manifest, fingerprint = load_manifest(root)
        if problems := missing_files(root, manifest):
            listed = "\n  ".join(problems)
            raise DataError(
                f"the stream {root} is damaged:\n  {listed}\n"
                "restore these files, or delete the folder and run `kaizen-dist prepare` again"
            )
        if config.cache_dir is not None:
            return cls._cached(root, Remote(str(root)), manifest, fingerprint, config)
        storages = [Folder(root / task.folder) for task in manifest.tasks]
        return cls(root, manifest, fingerprint, storages)

    @classmethod
    def _cached(
        cls,
        root: Path | Remote,
        remote: Remote,
        manifest: Manifest,
        fingerprint: str,
        config: StreamConfig,
    ) -> "Stream":
        """A stream read through this node's cache, its indices fetched."""
        folder = default_cache_dir() if config.cache_dir is None else Path(config.cache_dir)
        cache = Cache(folder, int(config.cache_gb * 1e9))
        tasks = manifest.tasks
        storages = [CachedFolder(cache, remote, fingerprint, task.folder) for task in tasks]
        with Meter("fetching the indices", len(PARTS) * len(tasks), "files") as meter:
            for task, storage in zip(tasks, storages, strict=True):
                for part in PARTS:
                    storage.open(index_name(part), Facts(sha256=task.index_sha256[part]))
                    meter.advance()
        return cls(root, manifest, fingerprint, storages)

    def __len__(self) -> int:
        return len(self.tasks)

    def split(self, task: int, part: Part) -> Split:
        """The training or validation samples of a task (0 is the first).

        Raises DataError when the index is damaged or has another number of rows than it should.
        """
        info, storage = self.tasks[task], self._storages[task]
        index_facts = Facts(sha256=info.index_sha256[part])
        split = Split.open(storage.path, part, info.shards_of(part), storage, index_facts)
        expected = info.train if part == "train" else info.val
        if len(split) != expected:
            raise DataError(
                f"{storage.shown(index_name(part))}: {len(split)} rows, but stream.json "
                f"counts {expected}; `kaizen-dist verify` lists all that is damaged"
            )
        return split


def load_manifest(root: Path) -> tuple[Manifest, str]:
    """The manifest of the stream in `root`, and the sha256 of its bytes.

    Raises DataError when it is missing, unfinished, of another version or not valid.
    """
    path = root / MANIFEST
    try:
        with waiting_for(path):
            raw = path.read_bytes()
    except OSError as error:
        raise DataError(_why_missing(root, error)) from None
    return _parse_manifest(raw, str(path))


def fetch_manifest(remote: Remote) -> tuple[Manifest, str]:
    """As `load_manifest`, from elsewhere."""
    raw = io.BytesIO()
    remote.fetch(MANIFEST, raw, UNKNOWN)
    return _parse_manifest(raw.getvalue(), remote.shown(MANIFEST))


def _parse_manifest(raw: bytes, path: str) -> tuple[Manifest, str]:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); restore it or prepare again") from None
    _check_version(path, content)
    try:
        return Manifest.model_validate(content), hashlib.sha256(raw).hexdigest()
    except ValidationError as error:
        raise DataError(f"{path}: damaged: {field_errors(error)}") from None


def missing_files(root: Path, manifest: Manifest) -> list[str]:
    """A line for every shard or index that is not there, and every shard of a wrong size."""
    problems = []
    for task in manifest.tasks:
        for shard in task.shards:
            path = root / task.folder / shard.name
            try:
                with waiting_for(path):
                    size = path.stat().st_size
            except OSError as error:
                problems.append(f"{path}: {error.strerror}")
                continue
            if size != shard.bytes:
                problems.append(f"{path}: {size:,} bytes, should be {shard.bytes:,}")
        indices = [root / task.folder / index_name(part) for part in PARTS]
        problems += [f"{path}: No such file" for path in indices if not path.is_file()]
    return problems


def field_errors(error: ValidationError) -> str:
    """All that pydantic found wrong, on one line: `field: message; field: message`."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'value'}: {problem['msg']}"
        for problem in error.errors()
    )


def _why_missing(root: Path, error: OSError) -> str:
    if (root / WORK_FOLDER).is_dir():
        return (
            f"the stream {root} is unfinished: its preparation was interrupted; run the same "
            "`kaizen-dist prepare` command again, it goes on where it was"
        )
    if ":/" in str(root):
        return f"{root}: only `train` and `inspect` read streams at URLs; give a folder"
    if not root.exists():
        return f"there is no stream {root}; make one with `kaizen-dist prepare SOURCE --out {root}`"
    if not (root / MANIFEST).exists():
        return (
            f"{root} is not a stream: it holds no {MANIFEST}; "
            "give the folder that `kaizen-dist prepare` wrote"
        )
    return f"{root / MANIFEST}: cannot be read: {error.strerror}"


def _check_version(path: str, content: Any) -> None:
    if not isinstance(content, dict) or "format_version" not in content:
        raise DataError(f"{path}: not a stream's manifest: it has no format_version")
    if content["format_version"] != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {content['format_version']}, this program reads version "
            f"{FORMAT_VERSION}; prepare the stream again, or use the program that wrote it"
        )
