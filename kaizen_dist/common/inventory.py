"""Which files a folder holds, with their sizes and digests: by it a checkpoint, and a replay store,
know whether they are whole.

An inventory comes from a file that somebody else may have written: it names plain files of its own
folder only, no link is followed, and what it does not list is not read.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kaizen_dist.common.files import file_sha256


class Entry(BaseModel):
    """What is known of a file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


FileName: TypeAlias = Annotated[str, Field(pattern=r"^\.?\w[\w.-]*$")]
"""Leads nowhere but into the folder."""

Inventory: TypeAlias = dict[FileName, Entry]


def inventory(folder: Path, names: Iterable[str]) -> Inventory:
    """Of some of a folder's files. Raises OSError."""
    paths = [folder / name for name in sorted(names)]
    return {
        p.name: Entry(bytes=p.stat().st_size, sha256=file_sha256(p, follow=False)) for p in paths
    }


def changed(folder: Path, listed: Mapping[str, Entry], part: int = 0, parts: int = 1) -> list[str]:
    """What differs from an inventory, in every `parts`-th of its files; empty = nothing."""
    share = sorted(listed.items())[part::parts]
    return [wrong for name, entry in share for wrong in _fault(folder / name, entry)]


def unlisted(folder: Path, listed: Mapping[str, Entry], listed_in: str) -> list[str]:
    """What lies in a folder and is not in its inventory, which is the file `listed_in`."""
    try:
        there = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return [f"{folder} cannot be read ({error.strerror or error})"]
    strange = [name for name in there if name not in listed and name != listed_in]
    return [f"{folder / listed_in} does not list {name!r}, which is there" for name in strange]


def reasons(error: OSError | ValueError) -> str:
    """In one line, why a document cannot be read."""
    if isinstance(error, ValidationError):
        problems = (
            f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors()
        )
        return "; ".join(list(problems)[:3])
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)


def _fault(path: Path, entry: Entry) -> Iterator[str]:
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
