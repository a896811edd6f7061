"""Commands that need not import torch: `python -m kaizen_dist ...`, and programs given by `-c` that
join a group of ranks, forked from a process that has.

`subprocess.Popen` stays what it is (pid, signals, exit code, pipes): a zygote, which has imported
everything and runs nothing, forks the command, and the process that asked for it becomes its
parent (as its nearest subreaper, prctl(2)). A command that starts ranks or runs of its own has
such a zygote, too. Only Linux can do this; elsewhere, and for any other command, nothing changes.
"""

import ctypes
import fcntl
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

PRELOADED = (
    "kaizen_dist.cli.training",
    "kaizen_dist.training.run",
    "kaizen_dist.engine.torch_engine",
    "kaizen_dist.models.export",
    "kaizen_dist.sweep.runner",
    "kaizen_dist.views.torch_backend",
    "torch._dynamo",
    "torch.distributed.checkpoint",
)
SCRIPTS = ("killed_rank.py",)
RANKS_OWN = "kaizen_dist.distributed.context"
"""What the programs of ranks import, and with it torch."""
STARTERS = ("--procs", "sweep", "demo", "--distributed")
"""Arguments of commands that start others."""
_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER, linux/prctl.h."""
_HIGH = 200
"""No descriptor of a test has such a number."""

enabled = sys.platform == "linux"
_zygote: socket.socket | None = None
_owner = 0
_cold = subprocess.Popen._execute_child


def install() -> None:
    """From now on commands of this process are warm."""
    subprocess.Popen._execute_child = _execute_child


def _execute_child(self: Any, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more):
    """As subprocess has it, but for the commands that a zygote can be."""
    _startupinfo, _flags, shell, reads, write_in, read_out, out, read_err, err, *others = more
    session = others[5]
    command = [os.fspath(a) for a in args] if isinstance(args, list | tuple) else []
    special = shell or executable or preexec_fn or _starts_differently(env)
    if not enabled or special or not _is_ours(command):
        _cold(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more)
        return
    told = {
        "command": command[1:],
        "cwd": os.fspath(cwd or Path.cwd()),
        "env": {os.fsdecode(k): os.fsdecode(v) for k, v in (env or os.environ).items()},
        "mask": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "parent": os.getpid(),
        "session": bool(session),
        "descriptors": [0, 1, 2, *pass_fds],
    }
    given = [
        own if own != -1 else ours for own, ours in zip((reads, out, err), range(3), strict=True)
    ]
    self.pid = _ask(told, [*given, *pass_fds])
    self._child_created = True
    self._close_pipe_fds(reads, write_in, read_out, out, read_err, err)


def _starts_differently(env: Any) -> bool:
    """Whether the environment has what an interpreter reads when it starts, and ours has not."""
    names = ("LANG", "LC_ALL", "LC_CTYPE", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONUNBUFFERED")
    return env is not None and any(env.get(name) != os.environ.get(name) for name in names)


def _is_ours(command: list[str]) -> bool:
    if len(command) < 2 or command[0] != sys.executable:
        return False
    if command[1] == "-m":
        return command[2].split(".")[0] == "kaizen_dist"
    if command[1] == "-c":
        return RANKS_OWN in command[2]
    return Path(command[1]).name in SCRIPTS


def _ask(told: dict[str, Any], given: list[int]) -> int:
    """The pid of a command that the zygote has forked, which is now a child of this process."""
    global _zygote, _owner
    if _zygote is None or _owner != os.getpid():
        _zygote, _owner = _started(), os.getpid()
    prctl = ctypes.CDLL(None).prctl
    prctl(_SUBREAPER, 1)
    try:
        socket.send_fds(_zygote, [json.dumps(told).encode()], given)
        answer = _zygote.recv(64)
    finally:
        prctl(_SUBREAPER, 0)
    assert answer, "the zygote has died"
    return int(answer)


def _started() -> socket.socket:
    """A zygote of this process: a new interpreter that imports everything."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # What is read while libraries are loaded; commands get their own environment later.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    _cold_popen([sys.executable, __file__, str(theirs.fileno())], environment, theirs.fileno())
    theirs.close()
    return ours


def _cold_popen(command: list[str], environment: dict[str, str], descriptor: int) -> None:
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, pass_fds=(descriptor,)
    )
    process.returncode = 0  # It ends with this process: nobody waits for it.


def serve(line: socket.socket) -> None:
    """Fork a command for every request, until whoever asks is gone."""
    while True:
        data, given, _, _ = socket.recv_fds(line, 1 << 20, 16)
        if not data:
            os._exit(0)
        told = json.loads(data)
        reads, writes = os.pipe()
        between = os.fork()
        if between == 0:
            if os.fork():
                os._exit(0)
            if told["session"]:
                os.setsid()
            os.write(writes, str(os.getpid()).encode())
            line.close()
            os.close(reads)
            os.close(writes)
            _become(told, given)
        for descriptor in (*given, writes):
            os.close(descriptor)
        pid = os.read(reads, 64)
        os.close(reads)
        os.waitpid(between, 0)
        line.send(pid)


def _become(told: dict[str, Any], given: list[int]) -> None:
    """In the forked process: be the command, and end with it."""
    while os.getppid() != told["parent"]:
        time.sleep(0.001)
    # Out of the way first: one may have the number that another is to get.
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _HIGH) for descriptor in given]
    for descriptor in given:
        os.close(descriptor)
    for number, descriptor in zip(told["descriptors"], moved, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(told["env"])
    os.chdir(told["cwd"])
    sys.path[:0] = ["", *filter(None, told["env"].get("PYTHONPATH", "").split(os.pathsep))]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        setattr(sys, stream, _stream(number))
    if any(word in told["command"] for word in STARTERS):
        _keep_a_zygote()
    signal.pthread_sigmask(signal.SIG_SETMASK, told["mask"])
    os.execv = _execv  # type: ignore[assignment]
    _run(told["command"])


def _stream(number: int) -> Any:
    """As a new interpreter opens it."""
    errors = "backslashreplace" if number == 2 else "strict"
    mode = "r" if number == 0 else "w"
    buffering = 1 if number == 2 or os.isatty(number) else -1
    return open(number, mode, buffering=buffering, errors=errors, closefd=False)


def _keep_a_zygote() -> None:
    """Fork one for what this command starts, while it has run nothing itself."""
    global _zygote, _owner
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork() == 0:
        ours.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        serve(theirs)
    theirs.close()
    _zygote, _owner = ours, parent


def _execv(path: str, argv: list[str]) -> None:
    """A command that becomes another one of ours need not begin anew."""
    if _is_ours(list(argv)):
        _run(list(argv)[1:])
    os.execve(path, argv, os.environ)


def _run(arguments: list[str]) -> None:
    code = 1
    # What was preloaded is run as a main module, too.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main() -> None:
    import gc
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    install()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
