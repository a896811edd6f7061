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
from kaizen_dist.common.formatting import DASH, duration, number, plural
from kaizen_dist.launch.progress import Progress
from kaizen_dist.launch.status import Overview, RunStatus

_STYLES = {
    "running": "green",
    "pending": "yellow",
    "finished": "dim",
    "waiting": "dim green",
    "preempted": "bold yellow",
    "unknown": "magenta",
}
"""By state; others are bold red."""
_REDRAW_SECONDS = 5.0


def watch(look: Callable[[], Overview], console: Console) -> None:
    """Draw the result of `look` again and again, until Ctrl-C."""
    live = Live(console=console, auto_refresh=False, vertical_overflow="ellipsis")
    with suppress(Interrupted), live:
        while True:
            live.update(status_table(look()), refresh=True)
            time.sleep(_REDRAW_SECONDS)


def status_table(seen: Overview) -> RenderableType:
    """Two lines a run at 80 columns, and the idle GPUs beneath."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("run\njob, nodes", overflow="fold")
    table.add_column("state\nrestarts", overflow="fold", min_width=10)
    table.add_column("task, epoch\nstep", no_wrap=True)
    table.add_column("images/s\nleft", justify="right", no_wrap=True)
    table.add_column("checkpoint\nsaved", no_wrap=True)
    shared = _common_folder([status.run for status in seen.runs])
    for status in seen.runs:
        table.add_row(*_cells(status, status.run.removeprefix(shared)))
    lines = [f"all in {shared}"] if shared else []
    if seen.idle_gpus:
        parts = [f"{i} of {total} in {name}" for name, (i, total) in seen.idle_gpus.items()]
        lines.append(f"GPUs idle: {', '.join(parts)}")
    if seen.problem:
        lines.append(f"the queue is not known: {seen.problem}")
    return Group(table, *(Text(one_line(line), style="dim") for line in lines))


def _common_folder(runs: list[str]) -> str:
    """The folder that all runs lie in, with its slash; empty for a single run."""
    parents = [os.path.dirname(run) for run in runs]  # noqa: PTH120 - text, as it was given
    if len(runs) < 2 or len({parent.startswith(os.sep) for parent in parents}) > 1:
        return ""
    common = os.path.commonpath(parents)
    return f"{common}{os.sep}" if common not in ("", os.sep) else ""


def _cells(status: RunStatus, run: str) -> list[Text]:
    """A cell of two lines each; the first two cells have a dim second line."""
    at = status.progress
    note = one_line(status.why) or (plural(status.restarts, "restart") if status.restarts else "")
    if status.looks_at is not None and status.state != "waiting":
        note = f"{note}, follows".removeprefix(", ")
    job = "local" if status.job is None else f"{status.job} {status.nodes}".rstrip()
    saved = f"{duration(at.checkpoint_age)} ago" if at.checkpoint else "none"
    speed = DASH if at.images_per_second is None else number(at.images_per_second)
    return [
        Text.assemble(one_line(run), (f"\n{job}", "dim")),
        Text.assemble(
            (status.state, _STYLES.get(status.state, "bold red")), (f"\n{note}".rstrip(), "dim")
        ),
        Text(_place(at)),
        Text(f"{speed}\n{duration(at.eta_seconds)}"),
        Text(f"{one_line(at.checkpoint or DASH)}\n{saved}"),
    ]


def _place(at: Progress) -> str:
    """Tasks and epochs from 1, as people count them."""
    if at.task is None:
        return DASH
    task = f"task {at.task + 1}" + (f"/{at.tasks}" if at.tasks else "")
    epoch = "" if at.epoch is None else f", epoch {at.epoch + 1}"
    of = f" of {at.steps:,}" if at.steps else ""
    return f"{task}{epoch}\nstep {at.step or 0:,}{of}"
