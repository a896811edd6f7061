"""Ranks that a real srun starts are the ranks of any other launcher."""

import socket
import sys
from pathlib import Path

import pytest
from killing import SMALL, outcome

from kaizen_dist.distributed.slurm_env import first_node

ROOT = Path(__file__).parents[2]
HERE = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
KAIZEN = [sys.executable, "-m", "kaizen_dist"]


def train(config: Path, stream: Path, run: Path) -> list[str]:
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    return ["train", str(config), *settings, "--stream", str(stream), "--out", str(run)]


def test_the_first_nodes_name_and_address_are_slurms(slurm):
    lists = ["node[1-4]", "n[008,010-012],m3", "rack[2-3]n[04-08,9],a", "login,n[1-2]", "x-1"]
    for nodes in lists:
        names = slurm.run("scontrol", "show", "hostnames", nodes).stdout.split()
        assert first_node(nodes) == names[0]
    address = "from kaizen_dist.distributed import slurm_env; print(slurm_env.address('node3'))"
    said = slurm.run(sys.executable, "-c", address, **HERE).stdout
    assert said.strip() == socket.gethostbyname(socket.gethostname())


@pytest.mark.timeout(1200)
def test_four_tasks_on_two_nodes_train_bit_for_bit_as_four_local_ranks(
    slurm, tmp_path, two_tasks, configs, local
):
    step = ["srun", "--nodes=2", "--ntasks=4", *KAIZEN]
    arguments = train(configs / "digits.yaml", two_tasks, tmp_path / "run")
    slurm.run(*step, *arguments, seconds=500, **HERE)
    assert outcome(tmp_path / "run") == outcome(local)


@pytest.mark.slurm
def test_a_number_of_tasks_that_does_not_fit_is_refused_by_each(slurm, tmp_path, digits, configs):
    """In a line each: before they meet, none knows that the others make the same mistake."""
    arguments = train(configs / "digits.yaml", digits.root, tmp_path / "run")
    step = ["srun", "--nodes=3", "--ntasks=3", *KAIZEN]
    done = slurm.run(*step, *arguments, check=False, seconds=250, **HERE)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if "fit: 1, 2, 4, 8" in line]
    assert [line.split(": ")[:2] for line in sorted(said)] == [
        ["error", f"rank {rank}"] for rank in range(3)
    ]
    assert not (tmp_path / "run").exists()
