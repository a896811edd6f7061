"""`bench scaling` on a real Slurm: submitted from a login node, and what is said before."""

import json
import sys

import pytest
from killing import SMALL

from kaizen_dist.common.errors import UsageError
from kaizen_dist.launch.scaling import allocated

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def command(configs, two_tasks, tmp_path):
    """The command, with OUT within the test's own folder."""
    settings = [f"{key}={value}" for key, value in SMALL.items() if key != "train.threads"]
    words = [sys.executable, "-m", "kaizen_dist", "bench", "scaling", configs / "digits.yaml"]
    words += [*settings, "ssl.hidden=16", "ssl.dim=8", "ssl.predictor_hidden=16"]
    return [*words, "--stream", two_tasks, "--out", tmp_path / "out", "--time", "20"]


@pytest.mark.slurm
def test_one_and_two_nodes_from_a_login_node(slurm, command, tmp_path):
    """One job of two nodes measures both counts, and leaves the three files."""
    flags = ["--nodes", "1,2", "--repeats", "1", "--steps", "2", "--json"]
    out = tmp_path / "out"
    said = json.loads(slurm.run(*command, *flags, seconds=120).stdout)
    assert said["out"] == str(out)
    ended = slurm.wait(said["job"], {"COMPLETED", "FAILED"}, seconds=450)
    logs = [*out.glob("slurm/logs/*.err"), *out.glob("logs/*.log")]
    assert ended["JobState"] == "COMPLETED", "\n".join(log.read_text()[-2000:] for log in logs)
    assert ended["NumNodes"] == "2"
    assert {"scaling.json", "scaling.md", "scaling.png"} < {p.name for p in out.iterdir()}
    found = json.loads((out / "scaling.json").read_text())
    assert [(row["name"], row["nodes"], row["ranks"]) for row in found["rows"]] == [
        ("weak, 1 node", 1, 1),
        ("weak, 2 nodes", 2, 2),
        ("strong, 1 node", 1, 1),
        ("strong, 2 nodes", 2, 2),
    ]
    for row in found["rows"]:
        assert (row["parts"]["communication"] > 0) == (row["nodes"] > 1)
        assert row["parts"]["checkpoint"] > 0
    assert slurm.run("squeue", "-h").stdout == ""


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--nodes", "1,3"], "counts that fit: 1, 2"),
        (["--nodes", "1,8"], "8 are more than the 4"),
        (["--nodes", "1,2", "--procs", "1,2"], "either --nodes"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_queued(slurm, command, tmp_path, flags, said):
    done = slurm.run(*command, *flags, check=False, seconds=120)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "out").exists()
    assert slurm.run("squeue", "-h").stdout == ""


def test_what_the_job_around_gives():
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4", "SLURM_CPUS_PER_TASK": "12"}
    assert allocated({}) is None
    assert allocated(job) == {"nodes": 4, "cpus_per_task": 12}
    assert allocated(job | {"SLURM_GPUS_ON_NODE": "8"})["gpus_per_node"] == 8
    # The shell that salloc may open on a node, by its number of a step.
    assert allocated(job | {"SLURM_STEP_ID": str(0xFFFFFFFA)}) is not None
    with pytest.raises(UsageError, match="without srun"):
        allocated(job | {"SLURM_STEP_ID": "0"})
