"""Streams of format 1: cut once, with class numbers in the order of the source.

They are read as they are; what extends one writes format 2, with this one as its `origin`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from kaizen_dist.stream.manifest_entries import Addition, BadImage, Name, Origin, Settings, TaskInfo
from kaizen_dist.stream.manifest_schema import Counts, StreamManifest


class ManifestV1(Settings):
    """The content of a `stream.json` of format 1."""

    format_version: Literal[1]
    classes: list[Name] = Field(min_length=1)  # type: ignore[assignment]
    counts: Counts
    tasks: Annotated[list[TaskInfo], Field(min_length=1)]
    bad: list[BadImage]


def from_v1(content: Any, fingerprint: str) -> StreamManifest:
    """The manifest of a stream of format 1, whose stream.json has this sha256 in hex.

    Raises:
        ValidationError: naming the fields that are wrong.
        ValueError: counts and tasks do not agree.
    """
    found = ManifestV1.model_validate(content)
    settings = found.model_dump(include=set(Settings.model_fields) - {"classes"})
    settings["upright"] = False  # the orientation was never looked at
    tasks, ignored = len(found.tasks), found.counts.ignored
    manifest = StreamManifest(
        fingerprint=fingerprint,
        additions=[
            Addition(settings=Settings(**settings), tasks=tasks, ignored=ignored, bad=found.bad)
        ],
        tasks=found.tasks,
        origin=Origin(fingerprint=fingerprint, tasks=tasks, classes=found.classes),
    )
    for name, count in found.counts:
        if count != (held := getattr(manifest.counts, name)):
            raise ValueError(f"counts.{name} is {count}, but the tasks have {held}")
    return manifest
