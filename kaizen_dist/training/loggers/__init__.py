"""Where the numbers of a run go beside events.jsonl: one file a logger, named in `log.to`."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from kaizen_dist.common.errors import KaizenError
from kaizen_dist.common.registry import Registry
from kaizen_dist.config.schema import Config
from kaizen_dist.training.loggers.base import Logger, Row

LOGGERS = Registry("log.to", "kaizen_dist.loggers", Logger, __name__)


class Loggers:
    """All loggers of a run. One that fails is dropped with a warning: the training goes on.

    Raises:
        UsageError: a name in `log.to` is unknown, or its package is not installed.
    """

    def __init__(self, config: Config, warn: Callable[[str], None]) -> None:
        self._config, self._warn = config, warn
        self._classes = {name: LOGGERS.find(name) for name in config.log.to}
        self._open: dict[str, Logger] = {}
        self._task = self._before = self._taken = self._first = 0

    def begin(self, run: Path, task: int, kept: Iterable[Row]) -> None:
        """Start at a task of a run whose rows so far are `kept`. Raises WriteError."""
        self._first = task
        for name, make in self._classes.items():
            self._try(name, partial(self._start, name, make, run))
        for row in kept:
            self.row(row, again=True)

    def _start(self, name: str, make: type[Logger], run: Path) -> None:
        logger = make()
        logger.begin(run, self._config)
        self._open[name] = logger

    def row(self, row: Row, again: bool = False) -> None:
        """A row of events.jsonl; `again` if it is from before a resume. Raises WriteError."""
        if row["task"] != self._task:
            self._task, self._before = row["task"], self._before + self._taken
        self._taken = row["step"] + 1
        step = self._before + self._taken
        self._each(lambda logger: logger.row(row, step), again)

    def task(self, name: str, value: float, task: int) -> None:
        """A number measured after a task. Raises WriteError."""
        self._each(lambda logger: logger.task(name, value, task), task < self._first)

    def close(self) -> None:
        self._each(lambda logger: logger.close(), again=False)
        self._open.clear()

    def _each(self, call: Callable[[Logger], None], again: bool) -> None:
        for name, logger in list(self._open.items()):
            if logger.replays or not again:
                self._try(name, partial(call, logger))

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except KaizenError:
            raise
        except Exception as error:
            self._open.pop(name, None)
            self._warn(
                f"log.to: {name} has failed and gets nothing more: {type(error).__name__}: "
                f"{error}; the training goes on"
            )
