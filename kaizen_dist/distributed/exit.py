"""End this process at once, after everything is written.

A thread of gloo releases the last collective's tensors a moment after the collective is done. If
the interpreter is shutting down by then, torch aborts the process (seen with 2.14, in one exit of a
few dozen on a busy machine, whatever has been destroyed before), and a finished run counts as
failed. So the interpreter is not shut down.
"""

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

_WRITE_SECONDS = 1.0


def leave(code: int) -> NoReturn:
    """End with `code`, after the functions registered with atexit."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # A closed pipe has been reported by now; None is a closed descriptor.
        with suppress(OSError, AttributeError):
            stream.flush()
    os._exit(code)


def abort(line: str, code: int) -> NoReturn:
    """From any thread: print a line on standard error, if it can be written, and end with `code`.

    Nothing else of the process is waited for: its main thread may hang in a collective.
    """
    # Writing to a full pipe that nobody reads never returns either.
    data = f"{line}\n".encode(errors="replace")
    writer = threading.Thread(target=os.write, args=(2, data), daemon=True)
    writer.start()
    writer.join(_WRITE_SECONDS)
    os._exit(code)
