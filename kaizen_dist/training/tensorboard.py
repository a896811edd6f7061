"""RUN/tensorboard: the rows of events.jsonl as curves.

The file is made anew whenever a run goes on, from the rows that are kept. So each step is there
once, whatever was killed, and it is the number of steps taken in all tasks, whatever became of the
batch size.
"""

import io
import os
import secrets
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from kaizen_dist.common.files import open_append, write_all
from kaizen_dist.common.run_layout import TENSORBOARD

_MARK = "events.out.tfevents."


class Board:
    """A new file in place of those that are there.

    Written at once, by no thread and no buffer, so that a full disk is met by whoever writes.
    Every method raises OSError.
    """

    def __init__(self, run: Path) -> None:
        folder = run / TENSORBOARD
        folder.mkdir(exist_ok=True)
        for old in folder.glob(f"{_MARK}*"):
            old.unlink()
        name = f"{_MARK}{int(time.time()):010d}.{secrets.token_hex(8)}"
        self._file = open_append(folder / name)
        self._task = self._before = self._taken = 0
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # Who has the page open already drops what the old file said.
        self._write(Event(step=0, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        os.close(self._file)

    def row(self, row: dict[str, Any]) -> None:
        """The numbers of a row of events.jsonl, which come in their order."""
        if row["task"] != self._task:
            self._task, self._before = row["task"], self._before + self._taken
        self._taken = row["step"] + 1
        values = {
            f"train/{name}": value
            for name, value in row.items()
            if isinstance(value, float) and name != "time"
        }
        self._scalars(values, self._before + self._taken, row.get("time"))

    def task(self, name: str, value: float, task: int) -> None:
        """A number measured after a task."""
        self._scalars({f"tasks/{name}": value}, task)

    def _scalars(self, values: dict[str, float], step: int, when: object = None) -> None:
        summary = Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in values.items()])
        wall_time = when if isinstance(when, float) else time.time()
        self._write(Event(wall_time=wall_time, step=step, summary=summary))

    def _write(self, event: Event) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        write_all(self._file, record.getvalue())
