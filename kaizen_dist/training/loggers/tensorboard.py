"""RUN/tensorboard: the rows of events.jsonl as curves.

The file is made anew whenever a run goes on, from the rows that are kept. So each step is there
once, whatever was killed, and it is the number of steps taken in all tasks, whatever became of the
batch size.
"""

import io
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from typing_extensions import override

from kaizen_dist.common.files import cannot_write, open_append, write_all
from kaizen_dist.common.run_layout import TENSORBOARD
from kaizen_dist.config.schema import Config
from kaizen_dist.training.loggers.base import Logger, Row, numbers

_MARK = "events.out.tfevents."


class TensorBoard(Logger):
    """A new file in place of those that are there.

    Written at once, by no thread and no buffer: a full disk raises WriteError, as it does for all
    files of a run.
    """

    replays = True

    @override
    def begin(self, run: Path, config: Config) -> None:
        self._folder = run / TENSORBOARD
        with self._writing():
            self._folder.mkdir(exist_ok=True)
            for old in self._folder.glob(f"{_MARK}*"):
                old.unlink()
            name = f"{_MARK}{int(time.time()):010d}.{secrets.token_hex(8)}"
            self._file = open_append(self._folder / name)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # A viewer that has the page open drops the content of the old file.
        self._write(Event(step=0, session_log=SessionLog(status=SessionLog.START)))

    @override
    def row(self, row: Row, step: int) -> None:
        self._scalars(numbers(row), step, row.get("time"))

    @override
    def task(self, name: str, value: float, task: int) -> None:
        self._scalars({f"tasks/{name}": value}, task)

    @override
    def close(self) -> None:
        os.close(self._file)

    def _scalars(self, values: dict[str, float], step: int, when: object = None) -> None:
        summary = Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in values.items()])
        wall_time = when if isinstance(when, float) else time.time()
        self._write(Event(wall_time=wall_time, step=step, summary=summary))

    def _write(self, event: Event) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        with self._writing():
            write_all(self._file, record.getvalue())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self._folder, error) from None
