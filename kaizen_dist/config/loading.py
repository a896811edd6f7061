"""Configurations from YAML files and dotted overrides, with every problem told at once.

A file may name a `base:` file or a list of them, later ones over earlier ones, whose keys it
then overrides. Paths are relative to the file that names them; a name that is not there is that of
a shipped configuration.
"""

import difflib
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, ValidationError

from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.registry import trust
from kaizen_dist.config.parsing import parse_yaml, read_yaml
from kaizen_dist.config.schema import Config
from kaizen_dist.config.shipped import find

BASES_LIMIT: Final = 16
"""Files, each the base of the one before."""
PROBLEMS_SHOWN: Final = 20
REMOVED: Final[dict[str, object]] = {
    "classifier.align_weights": False,
    "replay.balance": False,
    "eval.ema": 0.0,
}
"""Options that were measured to give nothing, with the value that switched each off: with it, an
older configuration is still read. The code has what each of them did up to `REMOVED_AFTER`."""
REMOVED_AFTER: Final = "8379c46"
ADDED: Final[dict[str, object]] = {"classifier.over": "all", "eval.drift_ridge": 0.1}
"""Options that runs of earlier versions did not have, with the value that means what they did."""

Known: TypeAlias = dict[Path, dict[str, Any]]
"""What files hold, with their bases, that have been read already: each is read once."""


def load(path: Path | None, overrides: Iterable[str] = (), *, stored: bool = False) -> Config:
    """Read a configuration file (None: the defaults) and apply `section.key=value` to it.

    A file `stored` in a run may be somebody else's: modules that it names are not imported.

    A file that is not there is looked for among those that come with the package.

    Raises:
        UsageError: listing every unknown key (with the nearest known one), wrong type and
            contradiction at once.
    """
    given: dict[str, Any] = {}
    values = {} if path is None else _read(find(path), (), {})
    for text in overrides:
        _override(values, text)
        _override(given, text)
    trust(_named(given if stored else values))
    where = "the defaults" if path is None else str(path)
    return validate(values, where, stored=stored)


def validate(values: Mapping[str, Any], where: str, *, stored: bool = False) -> Config:
    """A `Config` from plain data, or from what a run has `stored`, perhaps of an earlier version;
    `where` names the source in the error."""
    config, problems = check(_with_added(values) if stored else values)
    if config is None:
        listed = "\n".join(f"  {p}" for p in problems)
        raise UsageError(f"{where}: {len(problems)} problem(s) in the configuration\n{listed}")
    return config


def assemble(
    bases: Iterable[Path], settings: Mapping[str, Any], known: Known, *, stored: bool = False
) -> tuple[Config | None, list[str]]:
    """As `load`, of several bases (later ones over earlier ones) and settings by dotted key, but
    with a list of all that is wrong in place of an error; the configuration is None then."""
    values: dict[str, Any] = {}
    try:
        for base in bases:
            values = _merge(values, _read(base, (), known), base)
        for dotted, value in settings.items():
            _set(values, dotted, value)
    except UsageError as error:
        return None, [str(error)]
    if not stored:
        trust(_named(values))
    return check(values)


def check(values: Mapping[str, Any]) -> tuple[Config | None, list[str]]:
    """A `Config` from plain data, or None with a line for all that is wrong with it."""
    # By name: the learner imports the configuration, and brings torch along.
    method_class = import_module("kaizen_dist.learner.methods").method_class

    values, problems = without_removed(values)
    config = None
    try:
        config = Config.model_validate(tuples(values))
    except ValidationError as error:
        problems += explained(error, Config)
    try:
        named = values.get("method", Config.model_fields["method"].default)
        settings = method_class(_brief(str(named)))
        ssl = settings.Settings.model_validate(values.get("ssl") or {})
    except UsageError as error:
        problems.append(str(error))
    except ValidationError as error:
        problems += explained(error, settings.Settings, "ssl")
    if problems or config is None:
        return None, problems
    return config.model_copy(update={"ssl": ssl.model_dump(mode="json")}), []


def _named(values: Mapping[str, Any]) -> Iterator[Any]:
    """The values that may name code, by `module:Class`."""
    yield values.get("method")
    for section, key in (("model", "backbone"), ("log", "to")):
        inner = values.get(section)
        found = inner.get(key) if isinstance(inner, Mapping) else None
        yield from found if isinstance(found, list | tuple) else [found]


def without_removed(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values without the keys that are gone, and a line for each that was switched on."""
    kept, problems = dict(values), []
    for dotted, off in REMOVED.items():
        section, _, name = dotted.partition(".")
        inner = kept.get(section)
        if not isinstance(inner, Mapping) or name not in inner:
            continue
        if inner[name] != off:
            problems.append(
                f"{dotted}: this option was removed, as it improved nothing "
                f"(docs/experiments.md), got {shown(inner[name])}; leave it out, or use commit "
                f"{REMOVED_AFTER}, the last that has it"
            )
        kept[section] = {key: value for key, value in inner.items() if key != name}
    return kept, problems


def _with_added(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a run, with the options that its version did not have."""
    kept = dict(values)
    for dotted, meant in ADDED.items():
        section, _, name = dotted.partition(".")
        inner = kept.get(section)
        if isinstance(inner, Mapping) and name not in inner:
            kept[section] = {**inner, name: meant}
    return kept


def _read(path: Path, seen: tuple[Path, ...], known: Known) -> dict[str, Any]:
    """A file's values over those of its bases; `seen` are the files that named it."""
    try:
        place = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UsageError(f"cannot read the configuration {path}: {error}") from None
    if place in seen:
        raise UsageError(f"{seen[-1]}: base {path} leads back to itself")
    if place not in known:
        if len(seen) >= BASES_LIMIT:
            raise UsageError(f"{path}: a chain of more than {BASES_LIMIT} bases; use fewer")
        values = read_yaml(path, "configuration")
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise UsageError(
                f"{path}: a configuration is a mapping of sections, not a list, not text"
            )
        merged: dict[str, Any] = {}
        for name in _bases(path, values.pop("base", [])):
            merged = _merge(
                merged, _read(find(Path(name), path.parent), (*seen, place), known), path
            )
        known[place] = _merge(merged, values, path)
    return known[place]


def _bases(path: Path, named: Any) -> list[str]:
    """The names that `base:` has in the file at `path`."""
    names = named if isinstance(named, list) else [named]
    if not all(isinstance(name, str) and name for name in names):
        raise UsageError(f"{path}: base is the name of a file, or a list of such")
    return names


def _merge(below: dict[str, Any], above: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """What `above` (in the file at `where`, or a base of it) says, over what `below` does."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if old is not None and value is not None:
            if isinstance(old, dict) != isinstance(value, Mapping):
                raise UsageError(f"{where}: {_brief(str(key))} is a section here, a value there")
            if isinstance(old, dict):
                value = _merge(old, value, where)
        merged[key] = value
    return merged


def _override(values: dict[str, Any], text: str) -> None:
    """Set one `section.key=value` in place."""
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted.strip():
        raise UsageError(f"override {shown(text)}: write section.key=value, e.g. train.epochs=10")
    _set(values, dotted.strip(), parse_yaml(raw, f"override {shown(text)}"))


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, name = dotted.split(".")
    if len(sections) > 3 or not all((*sections, name)):
        raise UsageError(f"override {shown(dotted)}: no key is called so; e.g. train.epochs is one")
    for section in sections:
        inner = values.get(section, {})
        if not isinstance(inner, dict):
            raise UsageError(f"override {shown(dotted)}: {section} is a value, not a section")
        # A copy: what files hold is kept, and with an alias two sections are the same mapping.
        values[section] = inner = dict(inner)
        values = inner
    values[name] = value


def tuples(value: Any) -> Any:
    """YAML has lists where the strict models want tuples."""
    if isinstance(value, Mapping):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys of a model and of the sections in it, dotted."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += known_keys(inner, f"{prefix}{name}.")
        keys.append(prefix + name)
    return keys


def explained(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """A line for each of the first problems, and one for how many more there are."""
    errors = error.errors()
    lines = [_explain(problem, model, prefix) for problem in errors[:PROBLEMS_SHOWN]]
    rest = len(errors) - len(lines)
    return [*lines, *([f"... and {rest:,} more"] if rest else [])]


def _explain(error: Any, model: type[BaseModel], prefix: str = "") -> str:
    """One line for one pydantic error: the dotted key, what is wrong, the nearest known key."""
    parts = [str(p) for p in error["loc"]]
    dotted = ".".join([prefix, *parts] if prefix else parts)
    if error["type"] == "extra_forbidden":
        known = known_keys(model, f"{prefix}." if prefix else "")
        # A name may be right and its section wrong, so the last part counts as well.
        last = [k for k in known if k.rsplit(".", 1)[-1] == parts[-1]]
        near = last or difflib.get_close_matches(dotted, known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        return f"{_brief(dotted)}: unknown key{hint}"
    said = str(error["msg"]).removeprefix("Value error, ")
    return f"{_brief(dotted)}: {said}, got {shown(error['input'])}" if dotted else said


def shown(value: Any) -> str:
    """A value for an error: on one line, and not all of a very long one."""
    text = reprlib.repr(value) if isinstance(value, Mapping | list | tuple) else repr(value)
    return _brief(text)


def _brief(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:80]} ... ({len(text):,} characters)"
