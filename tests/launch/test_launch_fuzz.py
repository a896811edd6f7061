"""Damaged files of submitted runs: refused, or meaning what they say, and never anything else.

An attempt log means what it says if every row that comes back is the object on its line; a job and
a profile, if every value is the document's, or the default where the document has none. `status`
reads some numbers of a run's files only: it means what they say if those are the document's, or
says that the file is damaged; and no other run's row changes.
"""

import json
import statistics
from pathlib import Path

import pytest
import yaml
from fuzzing import CASES, mutations, survive
from run_folders import CONFIG, NOW, began, ended, event, make_run, submitted

from kaizen_dist.common.errors import KaizenError
from kaizen_dist.launch import status
from kaizen_dist.launch.attempts import AttemptLog, Stopped
from kaizen_dist.launch.job import SubmittedRun
from kaizen_dist.launch.progress import TrainingLength
from kaizen_dist.launch.resources import Resources, read
from kaizen_dist.runs.reader import TAIL_BYTES

COUNTS = pytest.mark.parametrize(
    "count", [60, pytest.param(CASES, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
PROFILE = {
    "partition": "gpu",
    "account": "a-group",
    "nodes": 2,
    "gpus_per_node": 8,
    "cpus_per_task": 12,
    "mem": "400G",
    "time": "8:00:00",
    "exclude": ["node3", "node4"],
    "setup": ["module load cuda", "export A=b"],
    "environment": {"NCCL_SOCKET_IFNAME": "ib0"},
    "sbatch": {"reservation": "training"},
    "shared_disk": True,
}
DEFAULTS = Resources().model_dump(mode="json")


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


@COUNTS
def test_an_attempt_log(tmp_path, count):
    log, accepted = AttemptLog(tmp_path), 0
    rows = [submitted("7", guard="8"), began("7"), ended("7", 137, "lost node2")]
    for row in [*rows, began("7", 1), Stopped(job="8", time=NOW, reason="no progress")]:
        log.append(row)
    whole = log.path.read_bytes()
    for what, data in mutations(whole, count):
        log.path.write_bytes(data)
        found = survive(log.rows)
        if isinstance(found, KaizenError):
            continue
        accepted += 1
        lines = data.splitlines()
        # The last may be cut short by a kill.
        assert len(lines) - len(found) in ((0,) if data.endswith(b"\n") else (0, 1)), what
        for row, line in zip(found, lines, strict=False):
            assert row.model_dump(mode="json") == json.loads(line), what
    assert 0 < accepted < count


@COUNTS
def test_a_job(tmp_path, count):
    job = SubmittedRun(
        root=tmp_path, stream="/s", tasks=5, chain=True, resources=Resources(**_tuples())
    )
    path, accepted = job.folder / "job.json", 0
    path.parent.mkdir()
    whole = json.dumps(job.model_dump(mode="json"), indent=1).encode()
    for what, data in mutations(whole, count):
        path.write_bytes(data)
        found = survive(lambda: SubmittedRun.read(tmp_path))
        if isinstance(found, KaizenError):
            continue
        accepted += 1
        said = json.loads(data)
        expected = (
            {"until": None, "follow": None}
            | said
            | {"root": str(tmp_path), "resources": DEFAULTS | said["resources"]}
        )
        assert found.model_dump(mode="json") == expected, what
    assert 0 < accepted < count


@COUNTS
def test_a_profile(tmp_path, count):
    path, accepted = tmp_path / "profile.yaml", 0
    whole = yaml.safe_dump(PROFILE, sort_keys=False).encode()
    for what, data in mutations(whole, count):
        path.write_bytes(data)
        found = survive(lambda: read(path, {}))
        if isinstance(found, KaizenError):
            continue
        accepted += 1
        said = yaml.load(data, Loader=yaml.BaseLoader) or {}
        got = found.model_dump(mode="json")
        for key, default in DEFAULTS.items():
            given = said.get(key)
            if given in (None, "", "null", "~"):
                assert got[key] == default, what
            elif isinstance(default, bool):
                assert got[key] == (given.lower() in ("true", "yes", "on", "1", "y", "t")), what
            elif isinstance(got[key], int):
                assert got[key] == int(given.replace(".0", "")), what
            else:
                assert got[key] == given, what
    assert 0 < accepted < count


@pytest.mark.parametrize("file", ["config.yaml", "events.jsonl", "results.json"])
@COUNTS
def test_status_of_a_run_beside_another(tmp_path, file, count):
    events = [event(0, 18, ago=12.0), event(0, 19, ago=11.0)]
    for name in ("bad", "whole"):
        make_run(tmp_path / "runs" / name, events, checkpoints=[("t00-s000010", 90.0)])
    seen = {row["run"]: row for row in _rows(tmp_path)}
    good, healthy = str(tmp_path / "runs" / "bad"), seen[str(tmp_path / "runs" / "whole")]
    whole, kept = (tmp_path / "runs" / "bad" / file).read_bytes(), 0
    for what, data in mutations(whole, count):
        (tmp_path / "runs" / "bad" / file).write_bytes(data)
        rows = survive(lambda: _rows(tmp_path))
        assert not isinstance(rows, KaizenError), (what, rows)
        found = {row["run"]: row for row in rows}
        assert found[healthy["run"]] == healthy, what
        row = found[good]
        if row["damage"]:
            assert file in row["damage"], what
            assert row["why"] == row["damage"], what
            continue
        kept += 1
        _meant(file, data, row, what)
    assert 0 < kept < count


def _meant(file: str, data: bytes, row: dict, what: str) -> None:
    """That a row says what the mutated file, and the others unchanged, do."""
    config, counts, finished = yaml.safe_load(CONFIG), [100, 60], False
    task, step, speed = 0, 20, 40.0
    if file == "events.jsonl":
        # Of a log only the end is read.
        end = data if len(data) <= TAIL_BYTES else data[-TAIL_BYTES:].split(b"\n", 1)[1]
        lines = [json.loads(line) for line in end.split(b"\n")[:-1]]
        if not lines:
            assert (row["task"], row["step"]) == (0, 10), what
            return
        last = lines[-1]
        task, step = max((last["task"], last["step"] + 1), (0, 10))
        speeds = [s for line in lines if (s := line.get("images_per_second")) is not None]
        speed = statistics.median(speeds) if speeds else None
    elif file == "config.yaml":
        config = yaml.safe_load(data)
    else:
        said = json.loads(data)
        counts = said.get("stream", {}).get("train_counts", [])
        finished = said.get("finished", False)
    plan = TrainingLength.model_validate(config).steps_of_tasks(counts)
    assert row["finished"] == finished, what
    assert (row["tasks"] or 0) == len(plan), what
    if plan and task >= len(plan):
        task, step = len(plan) - 1, plan[-1]
    assert (row["task"], row["step"]) == (task, step), what
    assert row["steps"] == (plan[task] if plan else None), what
    assert row["images_per_second"] == (None if speed is None else pytest.approx(speed)), what


def _rows(folder: Path) -> list[dict]:
    return json.loads(json.dumps(status.overview([folder / "runs"], NOW).to_json()))["runs"]


def _tuples() -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in PROFILE.items()}
