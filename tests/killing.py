"""The kill test: runs under SIGKILL at seeded moments end exactly as if nothing had happened.

Every run is started again with the same command after each kill, until it is finished; then
the digest of all tensors, the results and every row of events.jsonl must be those of the
undisturbed run. `tools/kill_test` runs the long form, `tests/test_kill.py` a short one.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

RANK = Path(__file__).with_name("killed_rank.py")

ENGINE, STREAM = "kaizen_dist.engine", "kaizen_dist.stream"
# What is hit: a function, how many of its calls a run between two kills has at least, and
# whether only the first rank calls it.
MOMENTS = {
    "in a step": (f"{ENGINE}.base:Engine.step", 5, False),
    "when a save begins": (f"{ENGINE}.checkpoint.writer:CheckpointWriter.save", 2, False),
    "inside a save": ("torch.distributed.checkpoint.filesystem:_write_item", 60, False),
    "between shards and manifest": (f"{ENGINE}.checkpoint.layout:commit", 2, True),
    "between manifest and name": (f"{ENGINE}.checkpoint.layout:atomic_write", 4, True),
    "while an old checkpoint is removed": (f"{ENGINE}.checkpoint.layout:set_aside", 2, True),
    "while replay is written": (f"{STREAM}.replay:ReplayStore.write_shards", 1, False),
    "between replay and its name": (f"{STREAM}.replay:ReplayStore.commit", 1, True),
    "in evaluation": ("kaizen_dist.evaluation.evaluator:Evaluator._accuracy", 1, False),
    "after evaluation": ("kaizen_dist.training.task_end:TaskEnd.measure", 1, False),
    "at a task's switch": ("kaizen_dist.training.trainer:Trainer.next_task", 1, False),
    "while a model is written": ("kaizen_dist.training.trainer:write_model", 1, True),
    "when a task begins": (f"{ENGINE}.torch_engine:DDPEngine.begin_task", 2, False),
    "while results are written": ("kaizen_dist.runs.results:Results.write", 2, True),
    "while a checkpoint is read": ("kaizen_dist.training.trainer:Trainer.begin", 1, False),
}

SMALL = {
    "train.max_steps": 4,
    "train.batch_size": 16,
    "replay.batch_size": 8,
    "train.threads": 1,
    "model.backbone": "tiny_backbone:Tiny",
    "classifier.hidden": 16,
    "distill.hidden": 16,
    "log.every_steps": 1,
    "eval.bank": 60,
    "eval.forward_transfer": "false",
    "checkpoint.every_steps": 2,
    "parallel.silence_seconds": 5,
}
METHODS = {
    "byol": {"hidden": 16, "dim": 8, "predictor_hidden": 16},
    "mocov2plus": {"hidden": 16, "dim": 8, "queue": 64},
}


@dataclass
class Setting:
    """A configuration that is killed: method, view backend and ranks."""

    method: str
    views: str
    world: int

    def write(self, file: Path, configs: Path) -> None:
        """The digits configuration, for this method."""
        lines = (configs / "digits.yaml").read_text().splitlines()
        kept = [line for line in lines if not line.startswith(("base:", "ssl:", "#"))]
        head = [f"method: {self.method}", f"ssl: {json.dumps(METHODS[self.method])}"]
        file.write_text("\n".join([*head, *kept]))

    def arguments(self, config: Path, stream: Path, run: Path) -> list[str]:
        small = SMALL | {"views.backend": self.views}
        settings = [f"{key}={value}" for key, value in small.items()]
        return ["train", str(config), *settings, "--stream", str(stream), "--out", str(run)]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(arguments: list[str], world: int, moments: dict[int, str]) -> list[int]:
    """Start all ranks, some of which kill themselves; the exit codes. As soon as one is dead
    the others are killed too, as a batch system does."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port())}
    sizes = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as log:
        ranks = []
        for r in range(world):
            place = address | sizes | {"RANK": str(r), "LOCAL_RANK": str(r)} if world > 1 else {}
            environment = os.environ | place | {"KILL_AT": moments.get(r, "")}
            ranks.append(
                subprocess.Popen(
                    [sys.executable, str(RANK), *arguments],
                    env=environment,
                    stdout=log,
                    stderr=log,
                )
            )
        codes = until_one_is_dead(ranks)
        # The others may have seen it, and ended by themselves.
        if any(codes) and -signal.SIGKILL not in codes:
            log.seek(0)
            raise AssertionError(f"exit codes {codes}\n{log.read()}")
        return codes


def until_one_is_dead(ranks: list[subprocess.Popen]) -> list[int]:
    """Wait until all have ended well, or one has not, and kill the others; the exit codes."""
    deadline = time.monotonic() + 300
    try:
        while any(p.poll() is None for p in ranks) and not any(p.poll() for p in ranks):
            assert time.monotonic() < deadline, "a run hangs"
            time.sleep(0.02)
        codes = [p.poll() for p in ranks]
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
            process.wait()
    return [0 if code is None else code for code in codes] if any(codes) else [0] * len(ranks)


def outcome(run: Path) -> dict:
    """What must not depend on having been killed."""
    results = json.loads((run / "results.json").read_text())
    assert results["finished"]
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    timing = ("images_per_second", "data_wait", "time", "checkpoint_stall")
    return {
        "state_sha256": results["state_sha256"],
        "accuracy": results["accuracy"],
        "knn": results["knn"],
        "models": {p.name: p.read_bytes() for p in sorted((run / "models").iterdir())},
        "rows": [{k: v for k, v in row.items() if k not in timing} for row in rows],
    }


def kill_and_compare(
    setting: Setting, stream: Path, configs: Path, folder: Path, kills: int, chance: random.Random
) -> list[str]:
    """One run under `kills` kills (or as many as it lives to see); the moments that were hit."""
    folder.mkdir(parents=True)
    setting.write(folder / "config.yaml", configs)
    whole, killed = folder / "whole", folder / "killed"
    arguments = setting.arguments(folder / "config.yaml", stream, whole)
    assert run_ranks(arguments, setting.world, {}) == [0] * setting.world
    arguments = setting.arguments(folder / "config.yaml", stream, killed)
    hit: list[str] = []
    order = chance.sample(sorted(MOMENTS), len(MOMENTS))
    while len(hit) < kills:
        what = order[len(hit) % len(order)]
        target, calls, first_only = MOMENTS[what]
        rank = 0 if first_only else chance.randrange(setting.world)
        moment = f"{target} {chance.choice(['before', 'after'])} {chance.randint(1, calls)}"
        codes = run_ranks(arguments, setting.world, {rank: moment})
        if not any(codes):
            break
        hit.append(f"{what} (rank {rank}: {moment})")
    assert run_ranks(arguments, setting.world, {}) == [0] * setting.world
    expected, found = outcome(whole), outcome(killed)
    for part, value in expected.items():
        assert found[part] == value, f"{part} differs after kills at {hit}"
    return hit


def main() -> None:
    """The long form: settings in turn until the number of kills is reached."""
    parser = argparse.ArgumentParser(
        description="Kill runs at seeded moments; see tests/killing.py"
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--procs", type=int, nargs="+", default=[2, 4])
    arguments = parser.parse_args()
    from kaizen_dist.stream.prepare import prepare

    configs = Path(__file__).parents[1] / "configs"
    chance = random.Random(arguments.seed)
    done, number = 0, 0
    views = ("torch", "dali")
    settings = [Setting(m, v, world) for world in arguments.procs for m in METHODS for v in views]
    with tempfile.TemporaryDirectory() as folder:
        stream = prepare("digits", Path(folder) / "digits", tasks=3, progress=False).root
        while done < arguments.kills:
            setting = settings[number % len(settings)]
            hit = kill_and_compare(
                setting,
                stream,
                configs,
                Path(folder) / f"run{number}",
                min(15, arguments.kills - done),
                chance,
            )
            number += 1
            done += len(hit)
            for what in hit:
                print(
                    f"{setting.method}, {setting.views} views, {setting.world} ranks, killed {what}"
                )
            print(f"{done} kills: bit for bit as undisturbed", flush=True)


if __name__ == "__main__":
    main()
