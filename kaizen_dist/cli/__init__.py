"""The `kaizen-dist` command: one function a verb, and no logic.

    streams     prepare, verify, inspect
    training    train, resume, demo
    clusters    submit, cancel, status, logs
    sweeps      sweep
    models      report, eval, export, predict
    benches     bench loader, stream, checkpoint, step, train, scaling
    health      doctor

Heavy imports are made inside the verbs, so that `--help` answers at once.
"""

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from kaizen_dist import __version__
from kaizen_dist.cli.app import app
from kaizen_dist.engine import signals, srun
from kaizen_dist.engine.leaving import leave
from kaizen_dist.errors import Interrupted, KaizenError, Preempted, UsageError

# isort: off
# They add their verbs to the command in this order.
from kaizen_dist.cli import streams, training, jobs, sweeps, models, benches, health  # noqa: F401
# isort: on


def main() -> None:
    """Run a verb; expected errors end with their message and exit code."""
    signals.listen()
    signal.signal(signal.SIGINT, _interrupt)
    srun.describe_as_torchrun(os.environ)
    code = _run()
    if "RANK" in os.environ:
        leave(code)
    sys.exit(code)


def _run() -> int:
    """The exit code of the verb; whatever there is to say of its end has been said."""
    rank = os.environ.get("RANK", "0")
    try:
        app(prog_name="kaizen-dist")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KaizenError as error:
        # All ranks read the same configuration: one of them is enough to say what is wrong.
        if rank == "0" or not isinstance(error, UsageError):
            where = f"rank {rank}: " if "RANK" in os.environ else ""
            Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"[bold red]error:[/] {where}", end=""
            )
            print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except Preempted as stop:
        if rank == "0":
            print(f"preempted: {stop}", file=sys.stderr)
        return stop.exit_code
    except Interrupted as stop:
        if rank == "0":
            print("interrupted; the same command goes on where it can", file=sys.stderr)
        return stop.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


def _version(asked: bool) -> None:
    if asked:
        print(f"kaizen-dist {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in ("train", "resume"):
        signals.release()
