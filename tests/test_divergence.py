"""Runs whose losses explode, killed in their saves: the newest checkpoint is always finite."""

import os
import random
import signal
import subprocess
import sys

import pytest
from finite import not_finite
from killing import RANK, Setting

from kaizen_dist.engine.checkpoint import layout
from kaizen_dist.stream.prepare import prepare

KILLS = 30
EXPLODING = [["optim.lr=1e30"], ["optim.lr=1e5"], ["optim.lr=1e38", "optim.weight_decay=1e6"]]
"""The loss first, later, and the weights after a step whose loss was finite."""
SAVES = {
    "when a save begins": "kaizen_dist.engine.checkpoint.writer:CheckpointWriter.save",
    "before it is written": "kaizen_dist.engine.checkpoint.layout:begin",
    "inside a save": "torch.distributed.checkpoint.filesystem:_write_item",
    "between shards and manifest": "kaizen_dist.engine.checkpoint.layout:commit",
    "while an old one is removed": "kaizen_dist.engine.checkpoint.layout:set_aside",
}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_newest_checkpoint_of_an_exploding_run_is_always_finite(tmp_path, configs):
    """By SIGKILL at a moment in a save, or by SIGTERM, which saves the step; every fifth run goes
    on where the one before was killed."""
    stream = prepare("digits", tmp_path / "s", tasks=2, progress=False).root
    config, chance, ended = tmp_path / "config.yaml", random.Random(14), []
    setting = Setting("byol", "torch", 1)
    setting.write(config, configs)
    run, good = tmp_path / "run", 0
    for number in range(KILLS):
        if number % 5 != 4:
            run = tmp_path / f"run-{number}"
        exploding = chance.choice(EXPLODING)
        every = f"checkpoint.every_steps={chance.choice([1, 2])}"
        seldom = ["log.every_steps=100", "train.max_steps=8"]
        given = [*setting.arguments(config, stream, run), *exploding, every, *seldom]
        moment = f"{SAVES[chance.choice(sorted(SAVES))]} {chance.choice(['before', 'after'])} "
        moment += str(chance.randint(1, 4))
        ended.append(end_in_a_save(given, moment, by_signal=number % 3 == 2))
        found = layout.found(run)
        good += len(found) > 0
        for path in found:
            assert layout.faults(path) == [], (number, moment)
        assert not_finite(run) == [], (number, moment)
    # Most were killed, and some had something to keep.
    assert ended.count(-signal.SIGKILL) >= KILLS // 4
    assert good >= KILLS // 4


def end_in_a_save(given: list[str], moment: str, by_signal: bool) -> int:
    """The exit code of a run that kills itself at the moment, or is told to stop there."""
    what = "TERM_AT" if by_signal else "KILL_AT"
    return subprocess.run(
        [sys.executable, str(RANK), *given],
        env=os.environ | {what: moment, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=600,
        check=False,
    ).returncode
