"""The `kaizen-dist` command: one function a verb, and no logic.

    streams     prepare, extend, verify
    labels      label
    steps       inspect
    training    train, resume, demo
    clusters    submit, cancel, status, logs
    sweeps      sweep
    models      report, eval, export, predict
    benches     bench loader, stream, checkpoint, step, train, scaling
    health      doctor

Heavy imports are made inside the verbs, so that `--help` answers at once.
"""

import errno
import os
import select
import signal
import sys
import traceback
from contextlib import suppress
from typing import Annotated

import typer
from rich.text import Text

from kaizen_dist import __version__
from kaizen_dist.cli.app import app
from kaizen_dist.common.console import PlainConsole, forgive_encoding, printable
from kaizen_dist.common.errors import Interrupted, KaizenError, Preempted, UsageError, WriteError
from kaizen_dist.distributed import signals, slurm_env
from kaizen_dist.distributed.exit import leave

# isort: off
# They add their verbs to the command in this order.
from kaizen_dist.cli import (  # noqa: F401
    streams,
    labels,
    steps,
    training,
    jobs,
    sweeps,
    models,
    benches,
    health,
)
# isort: on

_READER_GONE = 128 + signal.SIGPIPE
"""The exit code of a shell for SIGPIPE."""


def main() -> None:
    """Run a verb and end the process; expected errors end with their message and exit code."""
    forgive_encoding()
    code = _run()
    leave(code or _flush())


def _run() -> int:
    """Run the verb; its exit code, after its error message."""
    try:
        with signals.interruptible():
            slurm_env.describe_as_torchrun(os.environ)
            if "RANK" in os.environ:
                # Native stack traces about lost sockets would bury our own messages.
                os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
            app(prog_name="kaizen-dist")
    except SystemExit as end:
        return _exit_code(end)
    except KaizenError as error:
        _say(_of_rank(error), "error: ")
        return error.exit_code
    except Preempted as stop:
        if _first_rank():
            _say(f"preempted: {stop}")
        return stop.exit_code
    except Interrupted as stop:
        signals.say_interrupted()
        return stop.exit_code
    except OSError as error:
        return _cannot_print(error) or _defect(error)
    except Exception as error:
        return _defect(error)
    return 0


def _exit_code(end: SystemExit) -> int:
    """Exit code of a verb that ended itself."""
    broken = end.__context__
    if isinstance(broken, BrokenPipeError):
        # The libraries end it in silence for any pipe that breaks, rich for the output alone.
        own = traceback.extract_tb(end.__traceback__)[-1].name == "on_broken_pipe"
        return _READER_GONE if own else _cannot_print(broken) or _defect(broken)
    if isinstance(end.code, str):
        _say(end.code)
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def _cannot_print(error: OSError) -> int:
    """The exit code if the output cannot be written; 0 if the error is another one."""
    if isinstance(error, BrokenPipeError):
        outputs = select.poll()
        for descriptor in (1, 2):
            outputs.register(descriptor, 0)
        return _READER_GONE if any(seen & select.POLLERR for _, seen in outputs.poll(0)) else 0
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        _say(f"cannot write the output: {error.strerror}", "error: ")
        return WriteError.exit_code
    return 0


def _flush() -> int:
    """Flush the output: 0, or the exit code if it cannot be written."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError as error:
        return _cannot_print(error) or _defect(error)
    return 0


def _defect(error: BaseException) -> int:
    _say("".join(traceback.format_exception(error)))
    return 1


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _of_rank(error: KaizenError) -> str:
    """Error message with the rank. Before the ranks meet, most usage errors are those of all ranks:
    rank 0 prints the full message, each other rank one line. Other errors are printed in full."""
    if "RANK" not in os.environ:
        return str(error)
    lines = map(str.strip, str(error).splitlines())
    brief = isinstance(error, UsageError) and not _first_rank()
    return f"rank {os.environ['RANK']}: {'; '.join(lines) if brief else error}"


def _say(text: str, head: str = "") -> None:
    """Print on standard error, if it can be written."""
    with suppress(OSError):
        PlainConsole(stderr=True).print(Text.assemble((head, "bold red"), printable(text)))


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
