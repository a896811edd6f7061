"""Many names in little memory: their bytes and 4 more a name, where a string has 50 more."""

import heapq
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.stream.numbers import AT_ONCE, Numbers, compact

_MOST_IN_4_BYTES = (1 << 32) - 1


class NameList(Sequence[str]):
    """A sequence of names that can grow; picklable. Names of files need not be Unicode."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("I", [0])
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Adds a name at the end."""
        self._bytes += name.encode("utf-8", "surrogateescape")
        if self._ends.typecode == "I" and len(self._bytes) > _MOST_IN_4_BYTES:
            self._ends = array("Q", self._ends)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> "NameList": ...
    def __getitem__(self, i: int | slice) -> "str | NameList":
        if isinstance(i, slice):
            return NameList(self[n] for n in range(*i.indices(len(self))))
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        name = self._bytes[self._ends[i] : self._ends[i + 1]]
        return name.decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class PickedNames(Sequence[str]):
    """Some of the names of a list, by their numbers [n]. Its pickle holds these names only."""

    names: Sequence[str]
    numbers: Numbers

    def __reduce__(self) -> tuple[Any, ...]:
        return NameList, (list(self),)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> "PickedNames": ...
    def __getitem__(self, i: int | slice) -> "str | PickedNames":
        if isinstance(i, slice):
            return PickedNames(self.names, self.numbers[i])
        return self.names[int(self.numbers[i])]


class NameColumn:
    """Names that recur, such as labels: 4 bytes each. An empty name is none."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._code_of: dict[str, int] = {}

    def append(self, name: str) -> None:
        """Adds a name at the end."""
        self._codes.append(self._code_of.setdefault(name, len(self._code_of)) if name else -1)

    def numbered(self, in_order_of_arrival: bool = False) -> tuple[list[str], NDArray[np.int64]]:
        """The different names, and [n] indices into them, -1 for none. Whole numbers are in their
        order; other names in alphabetical order, or in that in which they came."""
        names = list(self._code_of)
        if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
            names.sort(key=int)
        elif not in_order_of_arrival:
            names.sort()
        place = {name: number for number, name in enumerate(names)}
        # The last one is that of -1, if only to have an array that is not empty.
        numbers = np.array([*(place[name] for name in self._code_of), -1], np.int64)
        return names, numbers[np.array(self._codes, np.int32)]


def sort_by_name(numbers: Numbers, name_of: Callable[[int], str]) -> None:
    """Sorts numbers [n] in place by their names, of which few are held at a time."""
    parts = [numbers[n : n + AT_ONCE] for n in range(0, len(numbers), AT_ONCE)]
    for part in parts:
        part[:] = sorted(part.tolist(), key=name_of)
    if len(parts) > 1:
        merged = heapq.merge(*(map(int, part) for part in parts), key=name_of)
        numbers[:] = np.fromiter(merged, numbers.dtype, len(numbers))


def sort_in_groups(group: NDArray[Any], name_of: Callable[[int], str]) -> Numbers:
    """[n] the order by group [n], and by name within each."""
    order = compact(np.argsort(group, kind="stable"))
    for part in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        sort_by_name(part, name_of)
    return order


def renumbered(names: Sequence[str], numbers: Numbers) -> tuple[list[str], Numbers]:
    """Only the names that are in use, and the numbers [n] (-1: none) that they have then."""
    used = np.unique(numbers[numbers >= 0])
    place = np.full(len(names) + 1, -1)
    place[used] = np.arange(len(used))
    return [names[n] for n in used], place[numbers]
