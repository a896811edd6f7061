"""Labels that were given to images after they had become a part of the stream.

    STREAM/labels-000000.npy     a numpy array of LABELS rows, ascending by id

They lie over the labels of the indices, which stay as they are, and later ones over earlier ones
(`joined` and `relabelled` in index.py).
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import atomic_write, read_bytes
from kaizen_dist.common.io_watchdog import waiting_for
from kaizen_dist.stream.index import LABELS, decode_index, encode_index, max_index_bytes
from kaizen_dist.stream.manifest_entries import LateLabels
from kaizen_dist.stream.reader import Facts
from kaizen_dist.stream.remote import Remote


def labels_name(number: int) -> str:
    """E.g. `labels-000000.npy`."""
    return f"labels-{number:06d}.npy"


def write_labels(root: Path, number: int, rows: NDArray[Any]) -> str:
    """Write LABELS rows, and return the file's sha256 in hex. Raises WriteError."""
    return atomic_write(root / labels_name(number), encode_index(rows))


def read_labels(root: Path | Remote, number: int, entry: LateLabels) -> NDArray[Any]:
    """The LABELS rows [n] that `entry` of the manifest is about.

    Raises:
        DataError: the file is missing, or not the one that was written.
    """
    name = labels_name(number)
    shown = root.shown(name) if isinstance(root, Remote) else str(root / name)
    most = max_index_bytes(entry.images)
    try:
        if isinstance(root, Remote):
            received = io.BytesIO()
            root.fetch(name, received, Facts(sha256=entry.sha256, most=most))
            raw = received.getvalue()
        else:
            with waiting_for(root / name):
                raw = read_bytes(root / name, most)
        if hashlib.sha256(raw).hexdigest() != entry.sha256:
            raise ValueError("its sha256 is not the one in stream.json")
        rows = decode_index(raw, LABELS)
        if len(rows) != entry.images or np.any(np.diff(rows["id"]) <= 0):
            raise ValueError(f"not {entry.images} rows, ascending by id")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{shown}: cannot be read: {reason}; restore it from a copy") from error
    return rows
