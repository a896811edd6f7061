"""`table:FILE`: a CSV or Parquet table with a row an image.

    path      the file, relative to the table's folder, or absolute
    label     its class; none: unlabelled
    split     train (or none), val (valid, validation) or test, as the parts of `folder:PATH`
    domain    its domain, for the scenario domain
    task      the task in which it comes: whole numbers in their order, names as they first come

Every column but `path` may be missing.
"""

import difflib
import posixpath
import stat
from array import array
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.console import ProgressBar, one_line
from kaizen_dist.common.errors import DataError
from kaizen_dist.common.formatting import plural
from kaizen_dist.stream.files.class_folders import ROLES, TEST, TRAIN, VAL
from kaizen_dist.stream.files.file_tree import SourceFiles, storable
from kaizen_dist.stream.files.listing import Faults, counted, fit_to_validate
from kaizen_dist.stream.files.name_list import (
    NameColumn,
    NameList,
    PickedNames,
    renumbered,
    sort_in_groups,
)
from kaizen_dist.stream.files.table_file import read_table
from kaizen_dist.stream.sources.base import Source, SourceKind, absolute

COLUMNS: Final = ("path", "label", "split", "domain", "task")
_ROLES: Final = (TRAIN, VAL, TEST)


class TableSource(SourceKind):
    """A row an image."""

    usage = "table:FILE (a .csv, .tsv or .parquet)"

    def open(self, spec: str, argument: str, work: Path, progress: bool) -> Source:  # noqa: ARG002
        """As `SourceKind.open`."""
        path, faults = Path(argument), Faults()
        table = _Table(path.parent, faults)
        header, rows = read_table(path, COLUMNS)
        columns = _check_header(path, header, faults)
        with ProgressBar(f"listing {path.name}", None, "files", shown=progress) as bar:
            for number, row in rows:
                bar.advance()
                if len(row) > len(header):
                    faults.add("rows with more cells than there are columns", f"row {number}")
                elif any(row):
                    cells = {name: row[n].strip() for name, n in columns.items() if n < len(row)}
                    table.add(number, cells, "task" in columns)
        return table.source(spec, path)

    def resolve(self, argument: str) -> str:
        """As `SourceKind.resolve`."""
        return absolute(argument)

    def has_tasks(self, argument: str) -> bool:
        """Whether the table has a column `task`."""
        header, _ = read_table(Path(argument), COLUMNS)
        return "task" in header

    def stamp(self, spec: str, argument: str, source: Source | None) -> str | None:
        """Of names, labels and sizes; None for a table that is gone."""
        path = Path(argument)
        if not path.exists():
            return None
        return (source or self.open(spec, argument, path, progress=False)).fingerprint()


class _Table:
    """The rows of a table that are fit to use, column by column."""

    def __init__(self, folder: Path, faults: Faults) -> None:
        self._folder, self._faults = folder, faults
        self._paths = NameList()
        self._rows, self._sizes, self._hashes = array("q"), array("q"), array("q")
        self._roles = array("b")
        self._labels, self._domains, self._tasks = NameColumn(), NameColumn(), NameColumn()

    def add(self, number: int, cells: dict[str, str], has_tasks: bool) -> None:
        """Adds a row, or notes what is wrong with it."""
        path, split = cells.get("path", ""), cells.get("split", "")
        role = ROLES.get(split.lower() or "train")
        if not path:
            self._faults.add("rows without a path", f"row {number}")
            return
        name = posixpath.normpath(path)
        size, why = _size(self._folder / name)
        if why:
            self._faults.add("files that cannot be read", f"row {number}: {path} ({why})")
        elif role is None:
            self._faults.add(
                "rows whose split is none of train, val, valid, validation, test",
                f"row {number}: {split!r}",
            )
        elif has_tasks and not cells.get("task"):
            self._faults.add("rows without a task", f"row {number}")
        else:
            self._paths.append(name)
            self._rows.append(number)
            self._sizes.append(size)
            self._hashes.append(hash(name))
            self._roles.append(_ROLES.index(role))
            self._labels.append(cells.get("label", ""))
            self._domains.append(cells.get("domain", ""))
            self._tasks.append(cells.get("task", ""))

    def source(self, spec: str, path: Path) -> Source:
        """All rows but those that are wrong together. Raises DataError where none is left."""
        classes, labels = self._labels.numbered()
        domains, domains_of = self._domains.numbered()
        tasks, tasks_of = self._tasks.numbered(in_order_of_arrival=True)
        role = np.array(self._roles, np.int8)
        val, test = role == _ROLES.index(VAL), role == _ROLES.index(TEST)
        kept = self._once()
        told = []
        if val.any() and test.any():
            rows = plural(int(test.sum()), "row")
            told.append(f"split test is left out: there is a validation part ({rows})")
            kept &= ~test
        is_val = val | test
        kept = fit_to_validate(classes, labels, is_val, kept, self._named, self._faults)
        if not kept.any():
            raise DataError("\n  ".join((f"{path}: no images in it", *self._faults.lines())))
        chosen = np.flatnonzero(kept)
        group = np.where(is_val, len(classes) + 1, 0) + labels
        chosen = chosen[sort_in_groups(group[chosen], lambda n: self._paths[chosen[n]])]
        classes, labels = renumbered(classes, labels[chosen])
        domains, domains_of = renumbered(domains, domains_of[chosen])
        tasks, tasks_of = renumbered(tasks, tasks_of[chosen])
        is_val = is_val[chosen]
        by_number = all(name.lstrip("-").isdecimal() for name in tasks)
        return Source(
            spec=spec,
            classes=list(map(storable, classes)),
            domains=list(map(storable, domains)),
            labels=labels,
            domains_of=domains_of,
            is_val=is_val,
            images=SourceFiles(self._folder, PickedNames(self._paths, chosen)),
            ignored=0,
            sizes=np.array(self._sizes, np.int64)[chosen],
            told=(counted(len(classes), labels, is_val), *told),
            faults=self._faults.lines(),
            tasks=[f"task {name}" if by_number else name for name in tasks],
            tasks_of=tasks_of if tasks else None,
        )

    def _named(self, n: int) -> str:
        return f"row {self._rows[n]}: {self._paths[n]}"

    def _once(self) -> NDArray[np.bool_]:
        """[n] the rows but those whose path an earlier one has."""
        hashes = np.array(self._hashes, np.int64)
        order = np.argsort(hashes, kind="stable")
        once = np.ones(len(order), bool)
        same = np.flatnonzero(np.diff(hashes[order]) == 0)
        # In the order of the rows: hashes are others in every process.
        for again, first in sorted(
            zip(order[same + 1].tolist(), order[same].tolist(), strict=True)
        ):
            if self._paths[first] == self._paths[again]:
                once[again] = False
                self._faults.add(
                    "paths that come twice",
                    f"rows {self._rows[first]} and {self._rows[again]}: {self._paths[again]}",
                )
        return once


def _size(path: Path) -> tuple[int, str]:
    """Bytes of a file, or why it cannot be read."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        return 0, getattr(error, "strerror", None) or str(error)
    return status.st_size, "" if stat.S_ISREG(status.st_mode) else "not a file"


def _check_header(path: Path, header: list[str], faults: Faults) -> dict[str, int]:
    """The place of each column in use. Raises DataError without a path, or with a name twice."""
    for name in COLUMNS:
        if header.count(name) > 1:
            raise DataError(f"{path}: has the column {name} twice; remove one of them")
    if "path" not in header:
        listed = ", ".join(map(one_line, header))
        hint = "; for images in the table itself give parquet:FILE" if "image" in header else ""
        raise DataError(
            f"{path}: has no column path, which names the images; its columns are {listed}{hint}"
        )
    for name in header:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            faults.add(
                f"columns other than {', '.join(COLUMNS)}",
                f"{name} (did you mean {near[0]}?)" if near else name or "one without a name",
            )
    return {name: n for n, name in enumerate(header) if name in COLUMNS}
