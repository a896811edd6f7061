"""A real Slurm and people who mean ill: names of jobs, and values that end up in a batch script."""

import json
import os
import time
from functools import partial
from pathlib import Path

import pytest
from run_folders import began, event, make_run, submitted
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import load
from kaizen_dist.launch import resources, submission
from kaizen_dist.launch import slurm as cluster
from kaizen_dist.launch.attempts import AttemptLog
from kaizen_dist.launch.job import SubmittedRun

CANARY = "canary"
EVIL = f"""\\'"\ntouch {CANARY} #"""
"""A line break, and what the batch shell takes for a command: sbatch reads its options otherwise
than the shell, and finds every quote of the line before closed."""


@pytest.fixture
def here(slurm, monkeypatch, tmp_path):
    """The cluster, as this process' own; its queue is empty again afterwards."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.environment[name])
    monkeypatch.chdir(tmp_path)
    yield slurm
    slurm.run("scancel", "-u", str(os.getuid()))
    deadline = time.monotonic() + 60
    while slurm.run("squeue", "-h").stdout.strip():
        assert time.monotonic() < deadline, "jobs that do not end"
        time.sleep(0.2)


def waiting(slurm, name: str) -> str:
    """A job of somebody who may call it anything."""
    return slurm.submit("-J", name, "--begin=now+1hour", "--output=/dev/null", "--wrap", "true")


def our_run(slurm, run: Path) -> str:
    """A job of a run, which works where a run's jobs do."""
    code = run / "slurm" / "code"
    code.mkdir(parents=True)
    job = slurm.submit(f"--chdir={code}", "--output=/dev/null", "--wrap", "sleep 300")
    for row in (submitted(job), began(job)):
        AttemptLog(run).append(row)
    (run / "slurm" / "job.json").write_text("{}")
    slurm.wait(job, "RUNNING")
    return job


# ---- what others call their jobs -----------------------------------------------------------


def test_whatever_other_jobs_are_called_ours_is_seen_and_taken_out(here, tmp_path):
    run = make_run(tmp_path / "run", [event(0, 19)])
    ours = our_run(here, run)
    lie = f"x JobId={ours} JobState=CANCELLED NodeList=(null)"
    hostile = [waiting(here, name) for name in ("two\nlines", lie, f"x\n{lie}", f"\n{ours}\x1fX")]

    seen = json.loads(CliRunner().invoke(app, ["status", "run", "--json"]).stdout)
    assert seen["problem"] == ""
    assert [(r["state"], r["job"]) for r in seen["runs"]] == [("running", ours)]
    assert [job.id for job in submission.running(run)] == [ours]
    said = CliRunner().invoke(app, ["cancel", "run"]).stdout
    assert said == f"1 job(s) taken out of the queue: {ours}\n"
    here.wait(ours, "CANCELLED")
    assert {job.id for job in cluster.jobs().values() if not job.over} == set(hostile)
    seen = json.loads(CliRunner().invoke(app, ["status", "run", "--json"]).stdout)
    assert seen["runs"][0]["why"] == f"job {ours} was cancelled"


def test_a_foreign_run_takes_out_no_job_of_the_reader(here, tmp_path):
    """Its attempts.jsonl and its job.json name the reader's."""
    ours = waiting(here, "ours")
    foreign = make_run(tmp_path / "foreign", rows=[submitted(ours, guard=ours)])
    (foreign / "slurm" / "job.json").write_text(json.dumps({"root": str(tmp_path / "run")}))
    said = CliRunner().invoke(app, ["cancel", str(foreign)]).stdout
    assert said == "0 job(s) taken out of the queue: none was there\n"
    assert not cluster.jobs()[ours].over


def test_an_array_of_an_earlier_version_is_read_and_left_alone(here, tmp_path):
    """`submit --array` let all of its runs work in the first one's folder."""
    code = tmp_path / "a" / "slurm" / "code"
    code.mkdir(parents=True)
    flags = [f"--chdir={code}", "--array=0-1", "--begin=now+1hour", "--output=/dev/null"]
    array = here.submit(*flags, "--wrap", "true")
    for index, name in enumerate("ab"):
        AttemptLog(tmp_path / name).append(submitted(f"{array}_{index}"))
        (tmp_path / name / "slurm" / "job.json").write_text("{}")
    seen = json.loads(CliRunner().invoke(app, ["status", str(tmp_path), "--json"]).stdout)
    assert [(r["state"], r["job"]) for r in seen["runs"]] == [
        ("pending", f"{array}_0"),
        ("pending", f"{array}_1"),
    ]
    assert submission.cancel(tmp_path / "a") == [], "that would end the others as well"
    assert {job.id for job in cluster.jobs().values() if not job.over} == {
        f"{array}_0",
        f"{array}_1",
    }


def test_how_a_user_likes_squeue_changes_no_answer(here, monkeypatch):
    ours = waiting(here, "ours")
    for name, value in {"PARTITION": "urgent", "STATES": "RUNNING", "NAMES": "none"}.items():
        monkeypatch.setenv(f"SQUEUE_{name}", value)
    monkeypatch.setenv("SINFO_PARTITION", "urgent")
    monkeypatch.setenv("SCANCEL_NAME", "none")
    assert cluster.jobs()[ours].state == "PENDING"
    assert [partition.name for partition in cluster.partitions()] == ["main", "urgent"]
    cluster.ask("scancel", ours)
    assert cluster.jobs()[ours].over


def test_a_node_s_reason_is_no_answer(here):
    update = ("scontrol", "update", "NodeName=node4")
    here.run(*update, "State=DRAIN", "Reason=x State=IDLE CPUTot=99 NodeName=node1")
    try:
        nodes = {node.name: node for node in cluster.nodes()}
        assert sorted(nodes) == here.nodes
        assert [name for name, node in nodes.items() if not node.usable] == ["node4"]
        assert {node.cpus for node in nodes.values()} == {4}
    finally:
        here.run(*update, "State=RESUME")


# ---- what is asked for ---------------------------------------------------------------------


def asked_in_every_way(folder: Path) -> dict[str, list[str]]:
    """What has a line break in it, and the arguments of `submit` that say so."""
    flags = ("account", "qos", "constraint", "mem", "partition", "container")
    ways = {name: [f"--{name}", EVIL] for name in flags}
    for name, value in {
        "sbatch": {"comment": EVIL},
        "exclude": [EVIL],
        "python": f"/bin/true\ntouch {CANARY}",
        "environment": {"A": EVIL},
        "mounts": [f"/{EVIL}"],
        "srun_args": [EVIL],
    }.items():
        profile = folder / f"{name}.yaml"
        profile.write_text(json.dumps({name: value}))
        ways[name] = ["--profile", str(profile)]
    ways["--out"] = ["--out", str(folder / f"out{EVIL}")]
    # The name alone: folders above it are made by nobody.
    ways["--out "] = ["--out", str(folder / f"out{EVIL}" / "run")]
    return ways


def test_no_value_becomes_a_command(here, tmp_path, two_tasks, configs):
    """Each is refused by its name, before anything is written or queued."""
    ways = asked_in_every_way(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    for name, way in ways.items():
        out = [] if name.startswith("--out") else ["--out", str(tmp_path / "out")]
        arguments = ["submit", str(configs / "digits.yaml"), "--stream", str(two_tasks), *out, *way]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, UsageError), (name, result.exception, result.stdout)
        said = str(result.exception)
        assert name.strip() in said, said
        assert "control character" in said, said
        assert here.run("squeue", "-h").stdout == "", name
    assert {path.name for path in tmp_path.iterdir()} == before
    assert not list(tmp_path.rglob(CANARY))


@pytest.mark.parametrize("name", ["50%j done", "back\\slash"])
def test_logs_that_slurm_would_lose_are_refused(here, tmp_path, two_tasks, configs, name):
    arguments = ["submit", str(configs / "digits.yaml"), "--stream", str(two_tasks)]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / name)])
    assert isinstance(result.exception, UsageError)
    assert "the logs would be lost" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_odd_names_that_are_no_danger_come_out_as_they_went_in(here, tmp_path):
    """Quotes, spaces, signs of the shell: the job runs, under that name, and its logs are there."""
    names = ["it's", 'a "b" $(touch canary)', "-x; touch canary", "#a `touch canary` #b", "é✓ ~"]
    started = {}
    for name in names:
        given = resources.read(None, {"time": "5", "sbatch": {"comment": name}})
        root = tmp_path / name
        job = SubmittedRun(root=root, stream="s", tasks=1, chain=False, resources=given)
        job.write(load(None))
        options = submission.attempt_options(job)
        started[submission.submit_one(job, partial(str, "done"), options)] = job
    for number, job in started.items():
        here.wait(number, "COMPLETED")
        job.write(load(None))  # as who submits it again does, over what this job has left
        (found,) = [f for f in cluster.jobs().values() if f.id == number]
        assert found.folder == str(job.code)
        assert "completed successfully" in (job.logs / f"{number}_0_log.out").read_text()
        shown = here.run("squeue", "-h", "--states=all", "-j", number, "-o", "%k|%j").stdout
        assert shown == f"{job.root.name}|kaizen-{job.root.name}\n"
    assert not list(tmp_path.rglob(CANARY))
