"""The original name of one image, for messages and pictures."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import open_to_read
from kaizen_dist.stream.index import index_name, read_index
from kaizen_dist.stream.reader import Folder, StoredFile


def names_file(part: str) -> str:
    """E.g. `train.names.jsonl`; see names.py."""
    return f"{part}.names.jsonl"


def image_name(folder: Path, part: str, id: int) -> str:
    """The original name of an image of a task's folder; "" where there is none, or the files
    that tell it cannot be read: a message about damage must not fail on other damage."""
    try:
        ids, offsets = _places(folder, part)
        (row,) = np.flatnonzero(ids == id).tolist()
        with open_to_read(folder / names_file(part)) as file:
            file.seek(int(offsets[row]))
            return str(json.loads(file.readline()))
    except (OSError, ValueError, IndexError, DataError):
        return ""


@lru_cache(maxsize=4)
def _places(folder: Path, part: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The ids of a part's images, and where their names begin in the file."""
    with open_to_read(folder / names_file(part)) as file:
        ends = np.flatnonzero(np.frombuffer(file.read(), np.uint8) == ord("\n"))
    rows = read_index(StoredFile(Folder(folder), index_name(part)))
    return rows["id"].copy(), np.concatenate([[0], ends + 1])
