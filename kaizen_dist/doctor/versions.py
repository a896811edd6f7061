"""Python and the packages: installed or not, and whether they are new enough.

Requirements are read from the installed package's own metadata, so that `setup.py` is their only
source. The packages a run cannot do without are imported as well: one that is installed but does
not load is worse than one that is missing.
"""

import importlib
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import kaizen_dist
from kaizen_dist.bench.machine import version_of
from kaizen_dist.doctor.report import Finding, fail_if, judged, warn_if

GROUP = "versions"
_IMPORTED = ("torch", "torchvision", "webdataset")
_DISTRIBUTION = "kaizen-dist"
_PYTHON = SpecifierSet(">=3.10")


class Extra(NamedTuple):
    """An optional feature: the extras of which any brings it, and its use."""

    name: str
    extras: tuple[str, ...]
    use: str
    missed: bool = False
    """Whether every run is the worse without it."""


EXTRAS = (
    Extra("DALI", ("dali-cuda13", "dali-cuda12"), "without it Pillow decodes, slower", missed=True),
    Extra("DeepSpeed", ("deepspeed",), "parallel.engine=deepspeed needs it"),
    Extra("submitit", ("slurm",), "submit needs it"),
    Extra("aiohttp, s3fs", ("remote",), "streams at URLs need it"),
    Extra("ONNX", ("onnx",), "export --onnx needs it"),
    Extra("timm", ("timm",), "model.backbone=timm/... needs it"),
)


def versions() -> Iterator[Finding]:
    """Python, this package, its requirements, and its optional features."""
    yield python(platform.python_version())
    try:
        wanted = [Requirement(line) for line in metadata.requires(_DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        cure = "pip install -e . in its folder, so that its requirements can be checked"
        yield Finding(GROUP, _DISTRIBUTION, "warn", f"{kaizen_dist.__version__}, a copy", cure)
        return
    yield Finding(GROUP, _DISTRIBUTION, "ok", kaizen_dist.__version__)
    required = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    found = [_required(requirement) for requirement in required]
    shown = [f for f in found if f.state != "ok" or f.name in _IMPORTED]
    yield from shown
    others = f"{len(found) - len(shown)} required ones are installed"
    yield Finding(GROUP, "other packages", "ok", others)
    for extra in EXTRAS:
        yield _optional(extra, wanted)


def python(version: str) -> Finding:
    """Whether this version of Python is supported."""
    rule = fail_if(version not in _PYTHON, f"python {_PYTHON} is needed")
    return judged(GROUP, "python", f"{version} ({sys.executable})", {"version": version}, rule)


def judge(requirement: Requirement, version: str | None) -> Finding:
    """A required package in that version; None: not installed."""
    name, needed = requirement.name, requirement.specifier
    old = version is not None and not needed.contains(version, prereleases=True)
    value = f"{version}, {needed} is needed" if old else version or "not installed"
    rule = fail_if(old or version is None, f"pip install '{name}{needed}'")
    return judged(GROUP, name, value, {"version": version}, rule)


def _required(requirement: Requirement) -> Finding:
    finding = judge(requirement, version_of(requirement.name))
    if finding.state != "ok" or requirement.name not in _IMPORTED:
        return finding
    try:
        importlib.import_module(requirement.name)
    except Exception as error:  # a package that does not fit its neighbours raises anything
        first = (str(error).splitlines() or [""])[0]
        value = f"{finding.value}, but it does not load: {first}"
        cure = "install torch and torchvision of one release, from one index"
        return Finding(GROUP, finding.name, "fail", value, cure, finding.facts)
    return finding


def _optional(extra: Extra, wanted: list[Requirement]) -> Finding:
    """The first extra that is complete and new enough, or the missing one."""
    install, old = f"pip install -e '.[{extra.extras[0]}]'", ""
    for name in extra.extras:
        needed = [r for r in wanted if r.marker is not None and r.marker.evaluate({"extra": name})]
        found = {r.name: version_of(r.name) for r in needed}
        if not needed or None in found.values():
            continue
        value = ", ".join(filter(None, found.values()))
        if all(r.specifier.contains(found[r.name] or "", prereleases=True) for r in needed):
            return Finding(GROUP, extra.name, "ok", value, facts={"version": value})
        old = f"{value}, {', '.join(f'{r.name}{r.specifier}' for r in needed)} is needed"
    wrong = bool(old) or extra.missed
    value = old or f"not installed; {extra.use}" + ("" if wrong else f": {install}")
    facts = {"version": None, "extra": extra.extras[0]}
    return judged(GROUP, extra.name, value, facts, warn_if(wrong, install))
