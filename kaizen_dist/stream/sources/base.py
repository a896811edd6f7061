"""The interface of a source: images, before they are cut into a stream."""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kaizen_dist.stream.numbers import AT_ONCE, Numbers, compact

NO_DOMAIN: Final = -1


class Images(Protocol):
    """Encoded images by number; picklable, so that worker processes can read them."""

    def read(self, i: int) -> bytes:
        """The bytes of image `i`. Raises BadImageError if it is none, DataError naming it if it
        cannot be read."""

    def name_of(self, i: int) -> str:
        """The source's name for image `i`."""


@runtime_checkable
class Divisible(Images, Protocol):
    """Images of which a worker process gets those only that it is to write: what has a name and a
    place for each of a million."""

    def part(self, numbers: Numbers) -> Images:
        """Only the images of these numbers [m], which are 0 to m - 1 then; picklable."""


@dataclass(frozen=True)
class Source:
    """Images, numbered by (part, class, name) with the training part first; `[n]` all images.
    Numbers are held in as many bytes as they need."""

    spec: str
    classes: list[str]
    """Empty where no image has a label."""
    domains: list[str]
    """Empty where the source knows no domains."""
    labels: Numbers
    """[n] indices into `classes`, -1: unlabelled. Validation images have a label."""
    domains_of: Numbers
    """[n] indices into `domains`, or -1."""
    is_val: NDArray[np.bool_]
    """[n] which images belong to the source's own validation part."""
    images: Images
    ignored: int = 0
    """Files that are not used: no images, or outside the class folders."""
    sizes: Numbers | None = None
    """[n] bytes of every image, where the source keeps files."""
    told: tuple[str, ...] = ()
    """Lines for the user: what each folder was used as, and what was ignored."""
    faults: tuple[str, ...] = ()
    """Lines for the user: what is wrong, and left out here; an error unless the user accepts it."""
    tasks: Sequence[str] = ()
    """Names of the tasks in their order, where the source says which image comes when."""
    tasks_of: Numbers | None = None
    """[n] indices into `tasks`."""

    def __post_init__(self) -> None:
        for name in ("labels", "domains_of", "sizes", "tasks_of"):
            if (numbers := getattr(self, name)) is not None:
                object.__setattr__(self, name, compact(numbers))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_val(self) -> bool:
        """Whether the source has a validation part of its own."""
        return bool(self.is_val.any())

    def read(self, i: int) -> bytes:
        """The encoded bytes of image `i`. Raises as `Images.read`."""
        return self.images.read(i)

    def name_of(self, i: int) -> str:
        """The source's name for image `i`."""
        return self.images.name_of(i)

    def fingerprint(self) -> str:
        """A digest in hex of names, labels and sizes, by which a changed source is noticed."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(repr((self.spec, self.classes, self.domains)).encode())
        digest.update(repr(list(self.tasks)).encode() if self.tasks else b"")
        parts = [slice(n, n + AT_ONCE) for n in range(0, len(self), AT_ONCE)]
        for array in (self.labels, self.domains_of, self.is_val, self.sizes, self.tasks_of):
            if array is None:
                continue
            width = np.bool_ if array is self.is_val else np.int64
            for part in parts:
                digest.update(array[part].astype(width).tobytes())
        for part in parts:
            names = (self.name_of(i) + "\0" for i in range(*part.indices(len(self))))
            digest.update("".join(names).encode())
        return digest.hexdigest()


class SourceKind(ABC):
    """A kind of source, which opens specs `KIND:ARGUMENT`."""

    usage: ClassVar[str]
    """How a spec is written, for messages, e.g. `folder:PATH`."""
    pattern: ClassVar[str] = r".+"
    """Regular expression of the argument."""
    in_tars: ClassVar[bool] = False
    """Whether its images are `TarMembers`, which a stream can read where they lie."""

    @abstractmethod
    def open(self, spec: str, argument: str, work: Path, progress: bool) -> Source:
        """Opens the source; `work` is a folder for large intermediate files.

        Raises DataError for a source that is missing, damaged or laid out otherwise.
        """

    def resolve(self, argument: str) -> str:
        """The argument with its path made absolute."""
        return argument

    def has_tasks(self, argument: str) -> bool:  # noqa: ARG002
        """Whether the source says which image comes in which task. Raises DataError."""
        return False

    def stamp(self, spec: str, argument: str, source: Source | None) -> str | None:  # noqa: ARG002
        """A digest in hex by which a later change of the source is noticed; None where there is
        nothing to compare. `source` is the same, if it is open."""
        return None


def absolute(path: str) -> str:
    """The absolute path, with `~` expanded."""
    return str(Path(path).expanduser().absolute())


def encode_png(image: Image.Image) -> bytes:
    """An image as PNG, without loss."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()
