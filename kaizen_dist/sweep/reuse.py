"""Runs that were made already: the same variant often stands in several sweeps.

A run is the same if its configuration computes the same and its stream has the same images in
the same order. It is not copied: OUT/runs/VARIANT/seed-N becomes a link to where it lies.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kaizen_dist.common.errors import KaizenError
from kaizen_dist.common.files import cannot_write, make_folder
from kaizen_dist.common.run_layout import CONFIG
from kaizen_dist.config import Config, differences, load
from kaizen_dist.launch.status import find_runs
from kaizen_dist.runs.reader import read_results
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.sweep.folder import SweepFolder


def adopt(folder: SweepFolder, streams: Mapping[str, Stream], places: Sequence[Path]) -> list[str]:
    """Link what is finished in or beneath `places` into the sweep; the names of those runs.

    `streams` has the stream of every run. What the sweep has begun itself is left alone.

    Raises:
        DataError: if one of the places is no folder.
        WriteError: if a link cannot be made.
    """
    known = list(_finished(places))
    adopted = []
    for run in folder.sweep.runs:
        target = folder.run(run)
        if target.exists():
            continue
        fingerprint = streams[run.name].fingerprint
        for path, config, theirs in known:
            if theirs == fingerprint and not differences(run.config, config):
                _link(target, path)
                adopted.append(run.name)
                break
    return adopted


def _finished(places: Iterable[Path]) -> Iterator[tuple[Path, Config, str]]:
    """Every finished run, with its configuration and the fingerprint of its stream."""
    for path in (run for place in places for run in find_runs(place)):
        try:
            results = read_results(path)
            if results is not None and results.finished:
                yield path, load(path / CONFIG, stored=True), results.stream.fingerprint
        except KaizenError:
            continue  # what cannot be read is not the same run


def _link(target: Path, path: Path) -> None:
    try:
        make_folder(target.parent)
        # Relative, so that folders moved together still find each other.
        target.symlink_to(os.path.relpath(path.resolve(), target.parent.resolve()))
    except OSError as error:
        raise cannot_write(target, error) from error
