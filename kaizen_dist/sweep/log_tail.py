"""What a run has said in its log, of which other attempts may have written the beginning."""

import os
from pathlib import Path

from kaizen_dist.common.files import open_to_read

_TAIL_BYTES = 65536


def last_error(log: Path, begins: int = 0) -> str:
    """The last error that was said since byte `begins`, or else the last line."""
    lines = _lines(log, begins)
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["it said nothing"])[-1]


def last_line(log: Path, begins: int = 0) -> str:
    """The last line since byte `begins`; empty where there is none."""
    return (_lines(log, begins) or [""])[-1]


def _lines(log: Path, begins: int) -> list[str]:
    """The lines of a log's last part that are not empty."""
    try:
        with open_to_read(log, follow=False) as file:
            file.seek(max(begins, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            said = file.read(_TAIL_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in said.splitlines() if line.strip()]
