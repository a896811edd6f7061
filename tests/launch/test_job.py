"""What a job runs, word by word."""

from pathlib import Path

from kaizen_dist.config import load
from kaizen_dist.launch.job import SubmittedRun, log_of
from kaizen_dist.launch.request import absolute_paths
from kaizen_dist.launch.resources import read


def command(stream: str = "/data/s", **flags) -> list[str]:
    asked = read(None, flags)
    job = SubmittedRun(root=Path("/runs/a"), stream=stream, tasks=5, chain=False, resources=asked)
    return job.srun(job.train(task=None), log_of(job.root, "17"))


def test_one_task_of_srun_is_one_rank():
    words = command(nodes=3, ranks_per_node=4, cpus_per_task=2, python="/opt/python")
    assert words[:5] == [
        "srun",
        "--nodes=3",
        "--ntasks=12",
        "--ntasks-per-node=4",
        "--cpus-per-task=2",
    ]
    assert words[words.index("/opt/python") :] == [
        "/opt/python",
        "-u",
        "-m",
        "kaizen_dist",
        "train",
        "/runs/a/slurm/config.yaml",
        "--stream",
        "/data/s",
        "--out",
        "/runs/a",
        "--no-summary",
    ]


def test_a_link_trains_up_to_the_end_of_its_task():
    job = SubmittedRun(root=Path("/r"), stream="/s", tasks=5, chain=True, resources=read(None, {}))
    assert job.train(task=2)[-2:] == ["--until", "3"]


def test_ranks_in_a_container():
    words = command(gpus_per_node=2, container="kaizen.sif", mounts=("/scratch",))
    at = words.index("apptainer")
    mounts = "/runs/a:/runs/a,/data/s:/data/s,/scratch:/scratch"
    assert words[at : at + 6] == ["apptainer", "exec", "--nv", "--bind", mounts, "kaizen.sif"]
    assert words[at + 6] == "python3"
    words = command(container="img", container_runtime="pyxis", stream="s3://bucket/s")
    assert "--container-image=img" in words
    assert "--container-mounts=/runs/a:/runs/a" in words
    assert words[words.index("python3") - 1].startswith("--container-workdir=/runs/a/slurm/code")


def test_a_configuration_s_files_are_found_from_a_job_s_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = absolute_paths(load(None, ["stream.cache_dir=cache"]))
    assert config.stream.cache_dir == str(tmp_path / "cache")
    assert absolute_paths(load(None)) == load(None)
