"""Runs and the cluster's idle GPUs as a table for a terminal, once or redrawn until Ctrl-C."""

import os
import time
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import Interrupted
from kaizen_dist.common.formatting import duration
from kaizen_dist.launch.progress import Standing
from kaizen_dist.launch.status import Overview, RunStatus

_STYLES = {
    "running": "green",
    "pending": "yellow",
    "finished": "dim",
    "failed": "bold red",
    "stopped": "bold red",
    "preempted": "bold yellow",
    "damaged": "bold red",
    "unknown": "magenta",
}
_REDRAW_SECONDS = 5.0


def watch(look: Callable[[], Overview], console: Console) -> None:
    """Draw what `look` sees, again and again, until Ctrl-C."""
    live = Live(console=console, auto_refresh=False, vertical_overflow="ellipsis")
    with suppress(Interrupted), live:
        while True:
            live.update(board(look()), refresh=True)
            time.sleep(_REDRAW_SECONDS)


def board(seen: Overview) -> RenderableType:
    """Two lines a run at 80 columns, and the idle GPUs beneath."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("run\njob, nodes", overflow="fold")
    table.add_column("state\nrestarts", overflow="fold", min_width=10)
    table.add_column("task, epoch\nstep", no_wrap=True)
    table.add_column("images/s\nleft", justify="right", no_wrap=True)
    table.add_column("checkpoint\nsaved", no_wrap=True)
    above = _above([status.run for status in seen.runs])
    for status in seen.runs:
        table.add_row(*_cells(status, status.run.removeprefix(above)))
    parts: list[RenderableType] = [table]
    parts += [Text(one_line(line), style="dim") for line in _beneath(seen, above)]
    return Group(*parts)


def _above(runs: list[str]) -> str:
    """The folder that all runs lie in, with its slash: what does not tell them apart."""
    parents = [os.path.dirname(run) for run in runs]  # noqa: PTH120 - text, as it was given
    if len(runs) < 2 or len({parent.startswith(os.sep) for parent in parents}) > 1:
        return ""
    common = os.path.commonpath(parents)
    return f"{common}{os.sep}" if common not in ("", os.sep) else ""


def _cells(status: RunStatus, run: str) -> list[Text]:
    where, state = status.standing, Text(status.state, style=_STYLES[status.state])
    if status.why:
        state.append(f"\n{one_line(status.why)}", style="dim")
    elif status.restarts:
        state.append(f"\n{_count(status.restarts, 'restart')}", style="dim")
    name = Text(one_line(run))
    name.append(f"\n{_job(status)}", style="dim")
    saved = duration(where.checkpoint_age) + " ago" if where.checkpoint else "none"
    speed = "–" if where.images_per_second is None else f"{where.images_per_second:,.0f}"
    return [
        name,
        state,
        Text(_place(where)),
        Text(f"{speed}\n{duration(where.eta_seconds)}"),
        Text(f"{one_line(where.checkpoint or '–')}\n{saved}"),
    ]


def _job(status: RunStatus) -> str:
    if status.job is None:
        return "local"
    return f"{status.job} {status.nodes}".rstrip()


def _place(where: Standing) -> str:
    """People count tasks from 1."""
    if where.task is None:
        return "–"
    task = f"task {where.task + 1}" + (f"/{where.tasks}" if where.tasks else "")
    epoch = "" if where.epoch is None else f", epoch {where.epoch + 1}"
    of = f" of {where.steps:,}" if where.steps else ""
    return f"{task}{epoch}\nstep {where.step or 0:,}{of}"


def _beneath(seen: Overview, above: str) -> list[str]:
    lines = [f"all in {above}"] if above else []
    if seen.idle_gpus:
        parts = [f"{i} of {total} in {name}" for name, (i, total) in seen.idle_gpus.items()]
        lines.append(f"GPUs idle: {', '.join(parts)}")
    if seen.problem:
        lines.append(f"the queue is not known: {seen.problem}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number > 1 else "")
