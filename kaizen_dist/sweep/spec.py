"""A sweep file, read into the list of its runs: typed and strict, all problems at once.

    base: ../digits.yaml                    a configuration, or several, relative to this file
    prepare: {source: digits, tasks: 5}     the stream, made when needed, unless --stream is given
    set: {train.epochs: 5}                  for all runs
    list:                                   named variants, ...
      - {name: kaizen}
      - {name: cassle, set: {distill.classifier: false, replay.fraction: 0}}
    grid: {replay.fraction: [0, 0.01, 0.1]} ... each at every point of the grid, ...
    seeds: [1, 2, 3]                        ... and each point once a seed

A variant may have a `base` and a `prepare` of its own; the grid may vary `prepare.tasks` and
its like. Keys of configurations are dotted, as on the command line; a section that is
set whole (`ssl: {...}`) replaces the base's.
"""

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import Config
from kaizen_dist.config.loading import Known, assemble, explained, shown, tuples
from kaizen_dist.config.parsing import parse_yaml, read_yaml
from kaizen_dist.config.schema import Name, Section, Seed, Share, Threads
from kaizen_dist.config.shipped import find

Model = TypeVar("Model", bound=BaseModel)

PREPARE = "prepare."
SEED = "train.seed"
VARIANT = "variant"
"""Column with the names of the variants."""
RUNS_LIMIT: Final = 10_000
"""Largest number of runs of a sweep; a grid with a few more keys has millions."""


class Preparation(Section):
    """Settings of a stream, as `kaizen-dist prepare` takes them."""

    source: Name
    scenario: Literal["class", "data", "domain"] = "class"
    tasks: int | None = Field(None, ge=1, le=100_000)
    seed: Seed = 5
    val_fraction: float = Field(0.2, gt=0, lt=1)
    labels: Share = 1.0
    resize: int | None = Field(None, ge=1, le=65_536)
    workers: Threads = 1
    domain_order: tuple[Name, ...] | None = None

    @property
    def name(self) -> str:
        """Name of its folder: every setting that decides its content."""
        chosen = self.model_dump(exclude={"workers"}, exclude_defaults=True, mode="json")
        source = chosen.pop("source")
        return folder_name([str(source), *(f"{k}={text(v)}" for k, v in chosen.items())])


class Variant(Section):
    """A named point of a sweep."""

    name: Annotated[Name, Field(max_length=200)]
    base: Name | tuple[Name, ...] | None = None
    """In place of the sweep's own."""
    set: dict[str, Any] = Field(default_factory=dict)
    prepare: dict[str, Any] = Field(default_factory=dict)
    """Over the sweep's own."""


class SweepFile(Section):
    """The file as it stands."""

    title: Annotated[Name, Field(max_length=200)] | None = None
    """Of the page."""
    base: Name | tuple[Name, ...] = ()
    prepare: dict[str, Any] = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)
    variants: tuple[dict[str, Any], ...] = Field((), alias="list")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    seeds: tuple[Seed, ...] | None = Field(None, min_length=1, max_length=RUNS_LIMIT)
    """Null: the one of the configuration."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    varied: dict[str, Any]
    """Values that distinguish its variant: `VARIANT` and keys of the grid."""
    seed: int
    config: Config
    preparation: Preparation | None
    """None: on a given stream."""
    own_stream: bool = False
    """Whether variant or grid change the preparation: a given stream does not replace it."""

    @property
    def labels(self) -> list[str]:
        """A text for each varied key and its value."""
        return [v if k == VARIANT else f"{k}={text(v)}" for k, v in self.varied.items()]

    @property
    def variant(self) -> str:
        """Name of the variant: runs that differ by their seed alone share it."""
        return ", ".join(self.labels)

    @property
    def name(self) -> str:
        """Its folder beneath the sweep's, named by what it varies, so that a sweep can grow."""
        return f"{folder_name(self.labels or ['run'])}/seed-{self.seed}"


@dataclass(frozen=True)
class Sweep:
    """All runs of a file."""

    title: str
    runs: tuple[SweepRun, ...]

    @property
    def keys(self) -> list[str]:
        """Varied keys but the seed, in the file's order."""
        return list(dict.fromkeys(key for run in self.runs for key in run.varied))

    @property
    def variants(self) -> dict[str, list[SweepRun]]:
        """The runs of every variant."""
        grouped: dict[str, list[SweepRun]] = {}
        for run in self.runs:
            grouped.setdefault(run.variant, []).append(run)
        return grouped


def text(value: Any) -> str:
    """A value as people write it: true, null, 0.01, [1, 2]."""
    return value if isinstance(value, str) else json.dumps(value)


def folder_name(parts: Iterable[str]) -> str:
    """A folder name that every file system accepts, with a digest where more than spaces were
    replaced."""
    wanted = ",".join(parts).replace(" ", "_")
    plain = re.sub(r"[^\w.,=+-]+", "_", wanted, flags=re.ASCII).strip("_.") or "_"
    if plain == wanted and len(plain) <= 120:
        return plain
    return f"{plain[:100]}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"


def read_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """The runs of a sweep file; `overrides` (`key=value`) apply to all of them.

    A file that is not there is looked for among those that come with the package.
    An override may set a key of the configuration, one of `prepare.`, or `seeds`.

    Raises:
        UsageError: listing all problems, with the nearest known keys.
    """
    path = find(path)
    problems: list[str] = []
    file = _overridden(_read(path, problems), overrides, problems)
    runs = list(_runs(file, path.parent, problems))
    if not problems:
        counts = Counter(run.name for run in runs)
        problems += [
            f"{name}: asked for more than once; every run needs a name of its own"
            for name, count in counts.items()
            if count > 1
        ]
    if problems:
        listed = "\n".join(f"  {p}" for p in dict.fromkeys(problems))
        raise UsageError(f"{path}: {len(set(problems))} problem(s) in the sweep\n{listed}")
    return Sweep(file.title or path.stem.replace("_", " "), tuple(runs))


def _read(path: Path, problems: list[str]) -> SweepFile:
    """The file without its invalid sections, so that the rest is checked too."""
    values = read_yaml(path, "sweep")
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a sweep is a mapping (base, set, list, grid, seeds)")
    try:
        return SweepFile.model_validate(tuples(values))
    except ValidationError as error:
        problems += explained(error, SweepFile)
        bad = {str(e["loc"][0]) for e in error.errors()}
        return SweepFile.model_validate(tuples({k: v for k, v in values.items() if k not in bad}))


def _overridden(file: SweepFile, overrides: Sequence[str], problems: list[str]) -> SweepFile:
    """The file with the overrides of the command line."""
    chosen: dict[str, Any] = {"prepare": dict(file.prepare), "set": dict(file.set)}
    own = [variant.get("set") or {} for variant in file.variants]
    varied = {key for keys in (file.grid, *own) if isinstance(keys, Mapping) for key in keys}
    for override in overrides:
        key, equals, raw = override.partition("=")
        value = parse_yaml(raw, f"override {shown(override)}")
        if not equals:
            problems.append(f"override {shown(override)}: write key=value, e.g. train.epochs=10")
        elif key in varied:
            problems.append(f"override {shown(override)}: the sweep varies {key}; edit it there")
        elif key == "seeds":
            chosen["seeds"] = value
        elif key.startswith(PREPARE):
            chosen["prepare"][key.removeprefix(PREPARE)] = value
        else:
            chosen["set"][key] = value
    values = file.model_dump(by_alias=True) | chosen
    return _validated(SweepFile, values, "", problems) or file


def _runs(file: SweepFile, folder: Path, problems: list[str]) -> Iterator[SweepRun]:
    """Every variant at every point of the grid with every seed."""
    named = [
        found
        for i, values in enumerate(file.variants)
        if (found := _validated(Variant, values, f"list.{i}", problems))
    ]
    problems += [f"grid.{key}: holds no value" for key, values in file.grid.items() if not values]
    for settings in (file.grid, file.set, *(v.set for v in named)):
        if SEED in settings:
            problems.append(f"{SEED}: name the seeds with `seeds: [1, 2, 3]`")
    grid = {key: values for key, values in file.grid.items() if values}
    asked = math.prod(map(len, (named or (None,), file.seeds or (None,), *grid.values())))
    if asked > RUNS_LIMIT:
        problems.append(f"asks for {asked:,} runs; {RUNS_LIMIT:,} are the most")
        return
    known: Known = {}
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for variant in named or [Variant.model_construct(name="")]:
        for point in points:
            yield from _seeds(file, folder, variant, point, known, problems)


def _seeds(
    file: SweepFile,
    folder: Path,
    variant: Variant,
    point: Mapping[str, Any],
    known: Known,
    problems: list[str],
) -> Iterator[SweepRun]:
    """The runs of one variant (without a name: of a file without variants) at one point of the
    grid, one a seed."""
    settings = file.set | variant.set | dict(point)
    prefixed = {k: v for k, v in settings.items() if k.startswith(PREPARE)}
    settings = {k: v for k, v in settings.items() if k not in prefixed}
    own = variant.prepare | {k.removeprefix(PREPARE): v for k, v in prefixed.items()}
    prepare = file.prepare | own
    preparation = _validated(Preparation, prepare, "prepare", problems) if prepare else None
    base = file.base if variant.base is None else variant.base
    bases = [folder / name for name in ([base] if isinstance(base, str) else base)]
    varied = ({VARIANT: variant.name} if variant.name else {}) | dict(point)
    for seed in file.seeds or (None,):
        seeded = settings if seed is None else settings | {SEED: seed}
        config, wrong = assemble(bases, seeded, known)
        problems += wrong
        if config is not None:
            yield SweepRun(varied, config.train.seed, config, preparation, bool(own))


def _validated(model: type[Model], values: Any, prefix: str, problems: list[str]) -> Model | None:
    try:
        return model.model_validate(tuples(values))
    except ValidationError as error:
        problems += explained(error, model, prefix)
        return None
