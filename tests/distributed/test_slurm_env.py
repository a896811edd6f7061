"""srun's variables in torchrun's words. golden/srun.json: environments of Slurm 22.05's tasks."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kaizen_dist.common.errors import PeerError, UsageError
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed import slurm_env
from kaizen_dist.distributed.context import start

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "srun.json").read_text())
RANKS = [name for name in RECORDED if name.startswith("task ")]
ALONE = [name for name in RECORDED if name not in RANKS]


@pytest.fixture
def controller(tmp_path, monkeypatch):
    """`controller(answer)`: an scontrol that says this; and what it was asked."""

    def answers(text: str, code: int = 0) -> Path:
        asked = tmp_path / "asked"
        program = tmp_path / "scontrol"
        program.write_text(f"#!/bin/sh\necho $* >>{asked}\ncat <<E\n{text}\nE\nexit {code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        return asked

    return answers


@pytest.mark.parametrize("name", RANKS)
def test_a_task_is_told_what_torchrun_would_tell_it(controller, name):
    asked = controller("NodeName=node1 Arch=x86_64 NodeAddr=10.1.2.3 NodeHostName=other Port=1")
    given = RECORDED[name]
    told = dict(given)
    slurm_env.describe_as_torchrun(told)
    # The numbers of all tasks on this node, in the order of their local ranks.
    node = [int(number) for number in given["SLURM_GTIDS"].split(",")]
    assert told["RANK"] == given["SLURM_PROCID"] == str(node[int(told["LOCAL_RANK"])])
    assert told["LOCAL_WORLD_SIZE"] == str(len(node))
    assert told["WORLD_SIZE"] == given["SLURM_NTASKS"]
    assert told["MASTER_ADDR"] == "10.1.2.3"
    assert 1024 < int(told["MASTER_PORT"]) < 32768
    assert "GLOO_SOCKET_IFNAME" not in told
    assert asked.read_text() == "show node -o node1\n"
    assert told.items() >= given.items()


@pytest.mark.parametrize("name", ALONE)
def test_a_batch_script_and_a_single_task_are_alone(name):
    told = dict(RECORDED[name])
    slurm_env.describe_as_torchrun(told)
    assert told == RECORDED[name]


IN_A_SHELL = """
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    from kaizen_dist.distributed import slurm_env
    environment = dict(os.environ)
    slurm_env.describe_as_torchrun(environment)
    print("RANK" in environment, flush=True)
    os._exit(0)
print(os.read(terminal, 100).decode())
os.waitpid(child, 0)
"""


@pytest.mark.parametrize(("port", "is_rank"), [("5000", False), (None, True)])
def test_what_is_typed_into_the_shell_of_a_step_is_alone(port, is_rank):
    """`srun -n5 --pty bash`: the shell is the first of five tasks, and sees their variables."""
    task = RECORDED["task 0 of 5 on 3 nodes"] | {"SLURM_TASK_PID": str(os.getppid())}
    environment = os.environ | task | {"MASTER_ADDR": "10.1.2.3"}
    environment |= {"SLURM_PTY_PORT": port} if port else {}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_SHELL],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == str(is_rank)


def test_a_task_that_has_a_terminal_itself_is_a_rank(monkeypatch):
    """`srun -n5 --pty kaizen-dist train ...`"""
    monkeypatch.setattr(slurm_env, "_has_terminal", lambda: True)
    told = RECORDED["task 0 of 5 on 3 nodes"] | {"MASTER_ADDR": "10.1.2.3"}
    told |= {"SLURM_PTY_PORT": "5000", "SLURM_TASK_PID": str(os.getpid())}
    slurm_env.describe_as_torchrun(told)
    assert told["RANK"] == "0"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SLURM_PROCID", None, "SLURM_PROCID is missing"),
        ("SLURM_STEP_NUM_TASKS", "five", "five"),
        ("SLURM_STEP_NODELIST", "", "no nodes"),
        ("SLURM_NODEID", "9", "makes no sense"),
    ],
)
def test_half_of_what_srun_sets_is_refused_by_name(controller, name, value, said):
    controller("")
    told = {k: v for k, v in RECORDED["task 0 of 5 on 3 nodes"].items() if k != name}
    told |= {} if value is None else {name: value}
    with pytest.raises(UsageError, match=said):
        slurm_env.describe_as_torchrun(told)


RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def test_a_program_of_ones_own_under_srun_is_a_rank_as_well(monkeypatch):
    """Only `kaizen-dist` itself used to look at Slurm's variables."""
    # Named to monkeypatch first, so that it takes away afterwards what `start` puts there.
    for name in (*RANK_VARIABLES, "TORCH_CPP_LOG_LEVEL", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    task = RECORDED["task 4 of 5 on 3 nodes"] | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in task.items():
        monkeypatch.setenv(name, value)
    config = ParallelConfig(timeout_seconds=0.5, keep_memory=False)
    with (
        pytest.raises(PeerError, match=r"rank 0 could not be reached.*127\.0\.0\.1:1 "),
        start(config, threads=1),
    ):
        pass


def test_what_torchrun_started_within_a_step_keeps_its_rank():
    given = RECORDED[RANKS[0]] | {"RANK": "7", "WORLD_SIZE": "8"}
    told = dict(given)
    slurm_env.describe_as_torchrun(told)
    assert told == given


def test_a_given_address_and_port_win(controller):
    asked = controller("NodeName=node1 NodeAddr=10.1.2.3")
    told = RECORDED[RANKS[0]] | {"MASTER_ADDR": "fabric-1", "MASTER_PORT": "4711"}
    slurm_env.describe_as_torchrun(told)
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("fabric-1", "4711")
    assert not asked.exists()


def test_ranks_of_one_node_stay_on_it(controller):
    asked = controller("NodeName=node1 NodeAddr=10.1.2.3")
    one = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "5", "SLURM_NODEID": "0"}
    told = RECORDED["task 0 of 5 on 3 nodes"] | one
    slurm_env.describe_as_torchrun(told)
    assert told["MASTER_ADDR"] == "127.0.0.1"
    assert told["GLOO_SOCKET_IFNAME"] == "lo"
    assert told["LOCAL_WORLD_SIZE"] == "5"
    assert not asked.exists()


def test_ranks_meet_elsewhere_after_a_requeue_in_another_step_and_in_the_next_job():
    first = RECORDED[RANKS[0]]
    others = [
        first | {"SLURM_RESTART_COUNT": "1"},
        first | {"SLURM_STEP_ID": "2"},
        first | {"SLURM_JOB_ID": str(int(first["SLURM_JOB_ID"]) + 1)},
    ]
    assert len({slurm_env.port(e) for e in [first, *others]}) == 4


def test_a_controller_that_cannot_be_asked_leaves_the_name(controller, monkeypatch):
    controller("Node node1 not found", code=1)
    assert slurm_env.address("node1") == "node1"
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm_env.address("node1") == "node1"


@pytest.mark.parametrize(
    ("written", "first"),
    [
        ("gpu7", "gpu7"),
        ("node[1-4]", "node1"),
        ("n[008,010-012],m3", "n008"),
        ("rack[2-3]n[04-08,9],a", "rack2n04"),
        ("login,n[1-2]", "login"),
        ("a-b[3,5]-ib", "a-b3-ib"),
    ],
)
def test_the_first_node_of_a_list(written, first):
    assert slurm_env.first_node(written) == first


def test_tasks_per_node():
    assert slurm_env.tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert slurm_env.tasks_per_node("4") == [4]


def test_a_task_has_the_cores_that_were_asked_for_it(controller):
    controller("NodeName=node1 NodeAddr=10.1.2.3")
    task = RECORDED[RANKS[0]] | {"SLURM_CPUS_PER_TASK": "6"}
    slurm_env.describe_as_torchrun(task)
    assert slurm_env.cores_of_task(task) == 6
    assert slurm_env.cores_of_task({k: v for k, v in task.items() if "CPUS" not in k}) is None
    # torchrun's ranks share the cores of the one task that it is.
    within = RECORDED["the only task of a step"] | {"RANK": "0", "WORLD_SIZE": "4"}
    assert slurm_env.cores_of_task(within | {"SLURM_CPUS_PER_TASK": "24"}) is None
    assert slurm_env.cores_of_task({}) is None
