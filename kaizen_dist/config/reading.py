"""Configurations from YAML files and dotted overrides, with every problem told at once.

A file may name a `base:` file or a list of them, later ones over earlier ones, whose keys it
then overrides (paths are relative to the file that names them).
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from kaizen_dist.config.schema import Config
from kaizen_dist.errors import UsageError


def load(path: Path | None, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration file (None: the defaults) and apply `section.key=value` to it.

    Raises:
        UsageError: listing every unknown key (with the nearest known one), wrong type and
            contradiction at once.
    """
    values = {} if path is None else _read(path, seen=())
    for text in overrides:
        _override(values, text)
    return validate(values, where="the defaults" if path is None else str(path))


def validate(values: Mapping[str, Any], where: str) -> Config:
    """A `Config` from plain data; `where` names the source in the error."""
    config, problems = check(values)
    if config is None:
        listed = "\n".join(f"  {p}" for p in problems)
        raise UsageError(f"{where}: {len(problems)} problem(s) in the configuration\n{listed}")
    return config


def assemble(
    bases: Path | list[Path] | None, settings: Mapping[str, Any]
) -> tuple[Config | None, list[str]]:
    """As `load`, of several bases (later ones over earlier ones) and settings by dotted key, but
    with a list of all that is wrong in place of an error; the configuration is None then."""
    values: dict[str, Any] = {}
    try:
        for base in [bases] if isinstance(bases, Path) else bases or []:
            values = _merge(values, _read(base.resolve(), seen=()))
        for dotted, value in settings.items():
            _set(values, dotted, value)
    except UsageError as error:
        return None, [str(error)]
    return check(values)


def check(values: Mapping[str, Any]) -> tuple[Config | None, list[str]]:
    """A `Config` from plain data, or None with a line for all that is wrong with it."""
    # The methods bring torch along, which a plain `--help` need not wait for.
    from kaizen_dist.learner.methods import method_class

    problems: list[str] = []
    config = None
    try:
        config = Config.model_validate(tuples(values))
    except ValidationError as error:
        problems += [explain(e, Config) for e in error.errors()]
    try:
        settings = method_class(str(values.get("method", Config.model_fields["method"].default)))
        ssl = settings.Settings.model_validate(values.get("ssl") or {})
    except UsageError as error:
        problems.append(str(error))
    except ValidationError as error:
        problems += [explain(e, settings.Settings, "ssl") for e in error.errors()]
    if problems or config is None:
        return None, problems
    return config.model_copy(update={"ssl": ssl.model_dump(mode="json")}), []


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-5 for a string; everybody who writes it means the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML; raises UsageError with `where`."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not valid YAML: {error}") from None


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A file's values over those of its bases."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the configuration {path}: {error}") from None
    values = parse_yaml(text, str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a configuration is a mapping of sections, not a list or text")
    named = values.pop("base", [])
    merged: dict[str, Any] = {}
    for base in named if isinstance(named, list) else [named]:
        base_path = (path.parent / str(base)).resolve()
        if base_path in (*seen, path.resolve()):
            raise UsageError(f"{path}: base {base} leads back to itself")
        merged = _merge(merged, _read(base_path, (*seen, path.resolve())))
    return _merge(merged, values)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _override(values: dict[str, Any], text: str) -> None:
    """Set one `section.key=value` in place."""
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted.strip():
        raise UsageError(f"override {text!r}: write section.key=value, e.g. train.epochs=10")
    _set(values, dotted.strip(), parse_yaml(raw, f"override {text!r}"))


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(f"override {dotted!r}: {section} is a value, not a section")
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


def explain(error: Any, model: type[BaseModel], prefix: str = "") -> str:
    """One line for one pydantic error: the dotted key, what is wrong, the nearest known key."""
    parts = [str(p) for p in error["loc"]]
    dotted = ".".join([prefix, *parts] if prefix else parts)
    if error["type"] == "extra_forbidden":
        known = known_keys(model, f"{prefix}." if prefix else "")
        # A name may be right and its section wrong, so the last part counts as well.
        last = [k for k in known if k.rsplit(".", 1)[-1] == parts[-1]]
        near = last or difflib.get_close_matches(dotted, known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        return f"{dotted}: unknown key{hint}"
    if not parts:
        return str(error["msg"]).removeprefix("Value error, ")
    return f"{dotted}: {error['msg']}, got {error['input']!r}"
