"""Images that lie in several tars, read by position; `--link` lets a stream read them there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.files.file_tree import SourceFiles, storable
from kaizen_dist.stream.files.name_list import PickedNames
from kaizen_dist.stream.images import BadImageError
from kaizen_dist.stream.numbers import Numbers
from kaizen_dist.stream.reader import Identity, identity_of


@dataclass(frozen=True)
class TarMembers:
    """Members of tars that are not compressed, [n]; a source's `Images`."""

    root: Path
    tars: Sequence[str]
    """Their paths, relative to the root."""
    identities: Sequence[Identity]
    """What each tar was when it was listed."""
    tar_of: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: Numbers
    names: Sequence[str]
    odd: Mapping[int, str]
    """Why it cannot be read, of each such image."""

    def read(self, i: int) -> bytes:
        """As `Images.read`."""
        if i in self.odd:
            raise BadImageError(self.odd[i])
        tar, here = self.path(self.tar_of[i]), slice(i, i + 1)
        # Opened for one image: there may be more tars than a process may hold open.
        return SourceFiles(tar, [self.names[i]], {}, self.sizes[here], self.offsets[here]).read(0)

    def name_of(self, i: int) -> str:
        """As `Images.name_of`."""
        return storable(f"{self.tars[self.tar_of[i]]}/{self.names[i]}")

    def part(self, numbers: Numbers) -> "TarMembers":
        """As `sources.base.Divisible.part`."""
        own = numbers.tolist() if self.odd else []
        return replace(
            self,
            tar_of=self.tar_of[numbers],
            offsets=self.offsets[numbers],
            sizes=self.sizes[numbers],
            names=PickedNames(self.names, numbers),
            odd={new: self.odd[old] for new, old in enumerate(own) if old in self.odd},
        )

    def path(self, tar: int) -> Path:
        """Where a tar lies."""
        return self.root / self.tars[tar]

    def check_unchanged(self, tar: int) -> None:
        """Raises DataError for a tar that is not what it was when it was listed."""
        path = self.path(tar)
        try:
            same = identity_of(path.stat()) == self.identities[tar]
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        if not same:
            raise DataError(
                f"{path}: has changed since it was listed: start the same command again"
            )
