"""Python and the packages: which are there, and whether they are new enough.

What is needed is read from the installed package's own metadata, so that it is said in
`setup.py` and nowhere else. The packages a run cannot do without are imported as well: one that
is there but does not load is worse than one that is missing.
"""

import importlib
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import kaizen_dist
from kaizen_dist.doctor.finding import Finding

GROUP = "versions"
_IMPORTED = ("torch", "torchvision", "webdataset")
_DISTRIBUTION = "kaizen-dist"
_PYTHON = SpecifierSet(">=3.10")


@dataclass(frozen=True)
class Extra:
    """Something optional: the extras of which any brings it, and what it is for."""

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
)


def versions() -> Iterator[Finding]:
    """Python, this package, what it requires, and what it can use."""
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
    others = len(found) - len(shown)
    yield Finding(GROUP, "other packages", "ok", f"{others} required ones are there")
    for extra in EXTRAS:
        yield _optional(extra, wanted)


def python(version: str) -> Finding:
    """What is to be said of a version of Python."""
    value = f"{version} ({sys.executable})"
    if version in _PYTHON:
        return Finding(GROUP, "python", "ok", value, facts={"version": version})
    return Finding(GROUP, "python", "fail", value, f"python {_PYTHON} is needed")


def judge(requirement: Requirement, version: str | None) -> Finding:
    """What is to be said of a required package in that version; None: it is not installed."""
    name, facts = requirement.name, {"version": version}
    cure = f"pip install '{requirement.name}{requirement.specifier}'"
    if version is None:
        return Finding(GROUP, name, "fail", "not installed", cure, facts)
    if not requirement.specifier.contains(version, prereleases=True):
        value = f"{version}, {requirement.specifier} is needed"
        return Finding(GROUP, name, "fail", value, cure, facts)
    return Finding(GROUP, name, "ok", version, facts=facts)


def _required(requirement: Requirement) -> Finding:
    finding = judge(requirement, installed(requirement.name))
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
    """The best of the extras: one that is whole and new enough, or what is missing."""
    install = f"pip install -e '.[{extra.extras[0]}]'"
    old = ""
    for name in extra.extras:
        needed = [r for r in wanted if r.marker is not None and _brings(name, r)]
        found = {r.name: installed(r.name) for r in needed}
        if not needed or None in found.values():
            continue
        value = ", ".join(version for version in found.values() if version)
        if all(r.specifier.contains(found[r.name] or "", prereleases=True) for r in needed):
            return Finding(GROUP, extra.name, "ok", value, facts={"version": value})
        old = f"{value}, {', '.join(f'{r.name}{r.specifier}' for r in needed)} is needed"
    facts = {"version": None, "extra": extra.extras[0]}
    if old:
        return Finding(GROUP, extra.name, "warn", old, install, facts)
    if extra.missed:
        return Finding(GROUP, extra.name, "warn", f"not installed; {extra.use}", install, facts)
    return Finding(GROUP, extra.name, "ok", f"not installed; {extra.use}: {install}", facts=facts)


def _brings(extra: str, requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra})


def installed(name: str) -> str | None:
    """The version of a package; None where it is not there, or not as an installed one."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
