"""The configurations and sweeps that come with the package: `configs/`, wherever that lies."""

from pathlib import Path
from typing import Final

import kaizen_dist

_PACKAGE = Path(kaizen_dist.__file__).parent
NAME: Final = "configs"


def shipped_folder() -> Path:
    """Where they lie: in the package, or beside it where that is a checkout."""
    inside = _PACKAGE / NAME
    return inside if inside.is_dir() else _PACKAGE.parent / NAME


def find(path: Path) -> Path:
    """The file that is meant: the one at `path`, or else the shipped one of that name.

    The shipped `configs/digits.yaml` is also called `digits.yaml` or `digits`. What is neither
    here nor there comes back as it is.
    """
    if path.exists() or path.is_absolute():
        return path
    name = Path(*path.parts[1:]) if path.parts[:1] == (NAME,) else path
    file = name if name.suffix == ".yaml" else name.with_name(f"{name.name}.yaml")
    ours = shipped_folder() / file
    return ours if ".." not in path.parts and ours.is_file() else path
