"""One rank of a run to which something happens at a moment it is given.

    KILL_AT="MODULE:NAME.OF.FUNCTION before|after COUNT" python killed_rank.py train ...

The moment is the COUNT-th call of a function in this process: KILL_AT ends it by SIGKILL, TERM_AT
sends it SIGTERM, PAUSE_AT makes it sleep for a minute, or until the file `paused` is removed
that it leaves in the run's folder.
RECORD_IDS names a file for the sample ids of every step. Nothing of the package knows of any of
this.
"""

import functools
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from kaizen_dist.__main__ import main
from kaizen_dist.engine.base import Engine


def wrap(target: str, wrapper) -> None:
    """Replace MODULE:NAME by wrapper(original)."""
    module_name, _, path = target.partition(":")
    owner = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, wrapper(getattr(owner, name)))


def arm(moment: str, happen) -> None:
    target, when, count = moment.rsplit(" ", 2)

    def wrapper(original):
        calls = 0

        @functools.wraps(original)
        def armed(*args, **kwargs):
            nonlocal calls
            calls += 1
            mine = calls == int(count)
            if mine and when == "before":
                happen()
            result = original(*args, **kwargs)
            if mine and when == "after":
                happen()
            return result

        return armed

    wrap(target, wrapper)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def pause() -> None:
    file = Path(sys.argv[sys.argv.index("--out") + 1]) / "paused"
    file.touch()
    deadline = time.monotonic() + 60
    while file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def record(file: Path) -> None:
    step = Engine.step
    task = 0

    def counted(original):
        def begin_task(self, number, *args, **kwargs):
            nonlocal task
            task = number
            return original(self, number, *args, **kwargs)

        return begin_task

    def recorded(self, batch, number):
        with file.open("a") as rows:
            rows.write(json.dumps({"task": task, "step": number, "ids": batch.ids.tolist()}) + "\n")
        return step(self, batch, number)

    Engine.step = recorded
    wrap("kaizen_dist.engine.torch_engine:DDPEngine.begin_task", counted)


if __name__ == "__main__":
    if os.environ.get("RECORD_IDS"):
        record(Path(os.environ["RECORD_IDS"]))
    if os.environ.get("PAUSE_AT"):
        arm(os.environ["PAUSE_AT"], pause)
    if os.environ.get("KILL_AT"):
        arm(os.environ["KILL_AT"], kill)
    if os.environ.get("TERM_AT"):
        arm(os.environ["TERM_AT"], terminate)
    main()
