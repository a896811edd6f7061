"""How the command ends: at once, with everything written.

A thread of gloo lets go of the last collective's tensors a moment after the collective is
done. Where the interpreter is winding up by then, torch aborts the process (seen with 2.14, in
one exit of a few dozen on a busy machine, whatever has been destroyed before), and a run that
is finished counts as failed. So nothing is wound up.
"""

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process with `code`, after what was registered to be done at the exit."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # What cannot be written (a closed pipe) has been told by now; None is a closed descriptor.
        with suppress(OSError, AttributeError):
            stream.flush()
    os._exit(code)
