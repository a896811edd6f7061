"""A sweep file: which runs there are to be. Typed, strict, all problems told at once.

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
"""What the column with the variants' names is called."""
RUNS_LIMIT: Final = 10_000
"""Runs of the largest sweep; a grid of a few keys more has millions."""


class Preparation(Section):
    """A stream to be made, as `kaizen-dist prepare` takes it."""

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
        """A folder's name that says all that decides what is in it."""
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
class Run:
    """One run of a sweep."""

    varied: dict[str, Any]
    """What tells its variant from the others, seeds apart: `VARIANT` and keys of the grid."""
    seed: int
    config: Config
    preparation: Preparation | None
    """None: on the stream that is given."""
    own_stream: bool = False
    """Whether variant or grid have a say in the preparation: a given stream is none for it."""

    @property
    def variant(self) -> str:
        """Runs that differ by their seed alone are of one variant."""
        return variant_name(self.varied)

    @property
    def name(self) -> str:
        """Its folder, below the sweep's: by what it varies, so that a sweep can grow."""
        parts = [v if k == VARIANT else f"{k}={text(v)}" for k, v in self.varied.items()]
        return f"{folder_name(parts or ['run'])}/seed-{self.seed}"


@dataclass(frozen=True)
class Sweep:
    """All that a file asks for."""

    title: str
    runs: tuple[Run, ...]

    @property
    def keys(self) -> list[str]:
        """What is varied beside the seed, in the file's order."""
        return list(dict.fromkeys(key for run in self.runs for key in run.varied))

    @property
    def variants(self) -> dict[str, list[Run]]:
        """The runs of every variant."""
        grouped: dict[str, list[Run]] = {}
        for run in self.runs:
            grouped.setdefault(run.variant, []).append(run)
        return grouped


def text(value: Any) -> str:
    """A value as people write it: true, null, 0.01, [1, 2]."""
    return value if isinstance(value, str) else json.dumps(value)


def variant_name(varied: Mapping[str, Any]) -> str:
    """What tells a variant from the others, for people."""
    return ", ".join(v if k == VARIANT else f"{k}={text(v)}" for k, v in varied.items())


def folder_name(parts: Iterable[str]) -> str:
    """A name for a folder: what no file system minds, and a digest where that lost more than a
    blank."""
    wanted = ",".join(parts).replace(" ", "_")
    plain = re.sub(r"[^\w.,=+-]+", "_", wanted, flags=re.ASCII).strip("_.") or "_"
    if plain == wanted and len(plain) <= 120:
        return plain
    return f"{plain[:100]}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"


def read_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """The runs that a sweep file asks for; `overrides` (`key=value`) are for all of them.

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
        problems += _repeated([run.name for run in runs])
    if problems:
        listed = "\n".join(f"  {p}" for p in dict.fromkeys(problems))
        raise UsageError(f"{path}: {len(set(problems))} problem(s) in the sweep\n{listed}")
    return Sweep(file.title or path.stem.replace("_", " "), tuple(runs))


def _read(path: Path, problems: list[str]) -> SweepFile:
    """The file, without what is wrong with it, so that the rest can be looked at too."""
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
    """The file with what the command line sets for all runs."""
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


def _runs(file: SweepFile, folder: Path, problems: list[str]) -> Iterator[Run]:
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
    variants: list[Variant | None] = [*named] or [None]
    for variant in variants:
        for point in points:
            yield from _point(file, folder, variant, point, known, problems)


def _point(
    file: SweepFile,
    folder: Path,
    variant: Variant | None,
    point: Mapping[str, Any],
    known: Known,
    problems: list[str],
) -> Iterator[Run]:
    """The runs of one variant at one point of the grid, a run a seed."""
    settings = file.set | (variant.set if variant else {}) | dict(point)
    own = dict(variant.prepare) if variant else {}
    own |= {k.removeprefix(PREPARE): v for k, v in settings.items() if k.startswith(PREPARE)}
    settings = {k: v for k, v in settings.items() if not k.startswith(PREPARE)}
    preparation = None
    if prepare := file.prepare | own:
        preparation = _validated(Preparation, prepare, "prepare", problems)
    base = variant.base if variant and variant.base is not None else file.base
    bases = [folder / name for name in ([base] if isinstance(base, str) else base)]
    varied = ({VARIANT: variant.name} if variant else {}) | dict(point)
    for seed in file.seeds or (None,):
        seeded = settings if seed is None else settings | {SEED: seed}
        config, wrong = assemble(bases, seeded, known)
        problems += wrong
        if config is not None:
            yield Run(varied, config.train.seed, config, preparation, bool(own))


def _validated(model: type[Model], values: Any, prefix: str, problems: list[str]) -> Model | None:
    try:
        return model.model_validate(tuples(values))
    except ValidationError as error:
        problems += explained(error, model, prefix)
        return None


def _repeated(names: Sequence[str]) -> list[str]:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return [
        f"{name}: asked for more than once; every run needs a name of its own" for name in twice
    ]
