"""The configurations and sweeps that come with the package: `configs/`, wherever that lies."""

from pathlib import Path
from typing import Final

_PACKAGE = Path(__file__).parents[1]
NAME: Final = "configs"


def shipped_folder() -> Path:
    """Their folder: in the package, or beside it where that is a checkout."""
    inside = _PACKAGE / NAME
    return inside if inside.is_dir() else _PACKAGE.parent / NAME


def find(path: Path, folder: Path = Path()) -> Path:
    """The file at `path` (from `folder`), or else the shipped one of that name.

    The shipped `configs/digits.yaml` is also called `digits.yaml` or `digits`. A path that is
    neither comes back as it is.
    """
    own = folder / path
    try:
        if own.exists() or path.is_absolute() or ".." in path.parts:
            return own
        name = Path(*path.parts[1:]) if path.parts[:1] == (NAME,) else path
        ours = shipped_folder() / name
        ours = ours if name.suffix == ".yaml" else ours.with_name(f"{ours.name}.yaml")
        return ours if ours.is_file() else own
    except OSError:  # a name that no file can have: reading it says so
        return own
