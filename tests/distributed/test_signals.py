"""Signals that come while a process starts: not lost by who trains, as usual for all others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import SMALL

pytestmark = pytest.mark.cold
KAIZEN = [sys.executable, "-m", "kaizen_dist"]


def python(code: str) -> subprocess.CompletedProcess[str]:
    head = "import os, signal\nfrom kaizen_dist.distributed import signals\nme = os.getpid()\n"
    return subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, timeout=60, check=False
    )


def send_at_once(pid: int, number: signal.Signals) -> None:
    """Send it as soon as the process has a handler for it: long before it has loaded torch."""
    deadline = time.monotonic() + 60
    while not caught(pid) >> (number - 1) & 1:
        assert time.monotonic() < deadline, "it never listens"
        time.sleep(0.001)
    os.kill(pid, number)
    assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def caught(pid: int) -> int:
    """The signals that a process has handlers for: bit n - 1 is signal n (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))


def test_a_noted_signal_is_told_and_the_first_counts():
    code = "signals.listen()\nfor s in (signal.SIGUSR2, signal.SIGUSR1): os.kill(me, s)\n"
    assert python(code + "print(signals.noted().name)").stdout == "SIGUSR2\n"


def test_a_second_sigterm_ends_at_once_but_no_echo_and_no_other_signal():
    code = "import time\nsignals.listen()\nterm = signal.SIGTERM\n"
    code += "for s in (signal.SIGUSR1, term, term, signal.SIGUSR2): os.kill(me, s)\n"
    code += "print('alive', flush=True)\ntime.sleep(1.2)\nos.kill(me, term)\nprint('still alive')"
    done = python(code)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "alive\n")


def test_released_signals_do_what_they_always_did_the_noted_one_first():
    code = "signals.listen()\nos.kill(me, signal.SIGUSR1)\nprint('alive', flush=True)\n"
    done = python(code + "signals.release()\nprint('still alive')")
    assert (done.returncode, done.stdout) == (-signal.SIGUSR1, "alive\n")
    again = python("signals.listen()\nsignals.release()\nos.kill(me, signal.SIGTERM)")
    assert again.returncode == -signal.SIGTERM


def test_a_verb_that_does_not_train_ends_by_the_signal(tmp_path):
    with subprocess.Popen([*KAIZEN, "prepare", "digits", "--out", str(tmp_path / "s")]) as process:
        send_at_once(process.pid, signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("procs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_while_it_starts_stops_a_run_at_its_first_step(tmp_path, digits, configs, procs):
    """With all saved, and 75."""
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    run = tmp_path / "run"
    given = ["train", str(configs / "digits.yaml"), *settings, "--procs", str(procs)]
    given += ["checkpoint.every_steps=0", "--stream", str(digits.root), "--out", str(run)]
    with subprocess.Popen([*KAIZEN, *given], stderr=subprocess.PIPE, text=True) as process:
        send_at_once(process.pid, signal.SIGUSR1)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 75, said
    assert "SIGUSR1" in said
    assert "with all saved" in said
    # Each rank hears of it at the first step, and all together one step later.
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"t00-s00000{procs}"]
