"""Strict documents, and inventories of a folder's files.

An inventory lists files of one folder with sizes and digests, by which a checkpoint or a replay
store is verified. It is untrusted: it names plain files of its own folder only, no link is
followed, and an unlisted file is not read.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from kaizen_dist.common.files import file_sha256


class StrictModel(BaseModel):
    """A document of a known form: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class FileEntry(StrictModel, frozen=True):
    """A file's size in bytes and its sha256 in hex."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


FileName: TypeAlias = Annotated[str, Field(pattern=r"^\.?\w[\w.-]*$")]
"""A plain name, which cannot lead out of the folder."""

Inventory: TypeAlias = dict[FileName, FileEntry]


def inventory(folder: Path, names: Iterable[str]) -> Inventory:
    """The inventory of some files of a folder. Raises OSError."""
    paths = [folder / name for name in sorted(names)]
    return {
        p.name: FileEntry(bytes=p.stat().st_size, sha256=file_sha256(p, follow=False))
        for p in paths
    }


def changed(
    folder: Path, listed: Mapping[str, FileEntry], part: int = 0, parts: int = 1
) -> list[str]:
    """Differences from every `parts`-th entry of an inventory, as messages."""
    names = sorted(listed)[part::parts]
    return [wrong for name in names for wrong in _fault(folder / name, listed[name])]


def unlisted(folder: Path, listed: Mapping[str, FileEntry], listed_in: str) -> list[str]:
    """Files of a folder that its inventory, the file `listed_in`, lacks, as messages."""
    try:
        there = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return [f"{folder} cannot be read ({error.strerror or error})"]
    strange = [name for name in there if name not in listed and name != listed_in]
    return [f"{folder / listed_in} does not list {name!r}, which is there" for name in strange]


def reasons(error: OSError | ValueError) -> str:
    """Why a document cannot be read, in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(map(_problem, error.errors()[:3]))
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)


def _problem(found: ErrorDetails) -> str:
    """The field, what is wrong with it, and (of plain values) what it holds."""
    value = found["input"]
    plain = found["type"] != "missing" and not isinstance(value, dict | list)
    got = f", got {repr(value)[:80]}" if plain else ""
    message = found["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, found['loc'])) or 'document'}: {message}{got}"


def _fault(path: Path, entry: FileEntry) -> Iterator[str]:
    try:
        size = path.lstat().st_size
        if size != entry.bytes:
            yield f"{path} has {size} bytes, its manifest says {entry.bytes}"
        elif file_sha256(path, follow=False) != entry.sha256:
            yield f"{path} is damaged: its sha256 is not the manifest's"
    except FileNotFoundError:
        yield f"{path} is missing"
    except OSError as error:
        yield f"{path} cannot be read ({error.strerror or error})"
