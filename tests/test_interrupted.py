"""Ctrl-C at any moment: 130, one line, and no traceback.

From the first moment that is ours: what Python does before it runs a program's first line, it
does without us.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import SMALL

pytestmark = pytest.mark.cold
MODULE = [sys.executable, "-m", "kaizen_dist"]
LINE = "interrupted; the same command goes on where it can\n"


def script(tmp_path: Path) -> list[str]:
    """The console script, as an installer writes it."""
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    module, function = re.search(r'^kaizen-dist = "(.+):(.+)"$', project, re.MULTILINE).groups()
    file = tmp_path / "kaizen-dist"
    file.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return [sys.executable, str(file)]


def caught(pid: int) -> int:
    """The signals that a process has handlers for: bit n - 1 is signal n (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))


def interrupted(command: list[str], delay: float) -> tuple[int, str] | None:
    """Code and standard error of a command that gets SIGINT `delay` seconds after it listens;
    None if it was done before."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and not caught(process.pid) >> (signal.SIGTERM - 1) & 1:
            assert time.monotonic() < deadline, "it never listens"
            time.sleep(0.001)
        time.sleep(delay)
        if not stopped(process):
            return None
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=60)
    return process.returncode, said


def stopped(process: subprocess.Popen[str]) -> bool:
    """Whether a process stood still before it was done: one that is winding up, which takes its
    time on a busy machine, hears no signal any more."""
    process.send_signal(signal.SIGSTOP)
    while process.poll() is None:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            return True
        time.sleep(0.001)
    return False


@pytest.mark.parametrize("entry", ["module", "script"])
def test_nothing_heavy_is_imported_before_it_listens(entry, tmp_path):
    listening = (
        "import sys\n"
        "from kaizen_dist.distributed import signals\n"
        "def listen():\n"
        "    print(*sorted({m.partition('.')[0] for m in sys.modules}))\n"
        "    raise SystemExit(7)\n"
        "signals.listen = listen\n"
        "import runpy\n"
    )
    if entry == "module":
        code = listening + "runpy.run_module('kaizen_dist', run_name='__main__')"
    else:
        code = listening + f"runpy.run_path({script(tmp_path)[1]!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert not set(done.stdout.split()) & {"typer", "rich", "torch", "numpy", "pydantic", "yaml"}


def test_while_it_imports_it_ends_at_once(tmp_path):
    """An exception there may be swallowed, or abort a library written in C++."""
    (tmp_path / "swallows.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
        "print('swallowed', flush=True)\n"
    )
    done = python("with signals.interruptible():\n    import swallows", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)


def test_what_a_destructor_would_swallow_ends_it_too(tmp_path):
    code = (
        "class Dropped:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT)\n"
        "with signals.interruptible():\n    Dropped()\n    print('swallowed')"
    )
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)


def test_what_is_open_is_closed_and_an_echo_does_not_disturb_it(tmp_path):
    code = (
        "try:\n"
        "    with signals.interruptible():\n"
        "        try: os.kill(os.getpid(), signal.SIGINT)\n"
        "        finally: os.kill(os.getpid(), signal.SIGINT); print('closed')\n"
        "except Interrupted: print('told')"
    )
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\ntold\n", "")


def test_a_second_one_ends_what_does_not_end(tmp_path):
    code = (
        "import time\n"
        "with signals.interruptible():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally: time.sleep(1.2); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
    )
    done = python(code, tmp_path)
    assert (done.returncode, done.stderr) == (130, LINE)


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    head = (
        "import os, signal\nfrom kaizen_dist.distributed import signals\n"
        "from kaizen_dist.common.errors import Interrupted\nsignals.listen()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(
        [sys.executable, "-c", head + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )


@pytest.mark.parametrize("entry", ["module", "script"])
def test_right_after_it_listens(entry, tmp_path, digits):
    command = MODULE if entry == "module" else script(tmp_path)
    assert interrupted([*command, "verify", str(digits.root)], 0) == (130, LINE)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["module", "script"])
@pytest.mark.parametrize("verb", ["help", "verify", "train", "ranks"])
def test_at_many_moments(entry, verb, tmp_path, digits, configs):
    command = MODULE if entry == "module" else script(tmp_path)
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    train = ["train", str(configs / "digits.yaml"), *settings, "--stream", str(digits.root)]
    # So far it comes in so many seconds, on a machine with nothing else to do.
    asked, takes = {
        "help": (["train", "--help"], 0.6),
        "verify": (["verify", str(digits.root), "--decode"], 3.0),
        "train": (train, 12.0),
        "ranks": ([*train, "--procs", "2"], 16.0),
    }[verb]
    chance = random.Random(f"{entry} {verb}")
    ended = 0
    for number in range(40 if verb != "ranks" else 20):
        delay = takes * chance.random()
        out = ["--out", str(tmp_path / f"run{number}")] if "train" in asked[:1] else []
        out = [] if verb == "help" else out
        found = interrupted([*command, *asked, *out], delay)
        ended += found is None
        assert found in (None, (130, found and found[1])), f"after {delay:.3f} s: {found}"
        if found is not None:
            said = found[1]
            assert said.count(LINE) == 1, f"after {delay:.3f} s:\n{said}"
            assert "Traceback" not in said, f"after {delay:.3f} s:\n{said}"
    assert ended < 30, "hardly any of the moments was within its life"
