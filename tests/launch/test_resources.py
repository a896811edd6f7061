"""What is asked of a cluster: profiles, flags, and what is wrong with them."""

import pytest

from kaizen_dist.errors import UsageError
from kaizen_dist.launch.cluster import gpus_of, minutes
from kaizen_dist.launch.resources import read


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # the forms in sbatch's manual, under --time
        ("30", 30),
        ("30:00", 30),
        ("1:30", 2),
        ("1:30:00", 90),
        ("24:00:00", 1440),
        ("2-0", 2880),
        ("2-12", 3600),
        ("2-12:30", 3630),
        ("2-12:30:01", 3631),
        ("UNLIMITED", None),
    ],
)
def test_times_as_slurm_writes_them(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize(
    ("gres", "expected"),
    [
        ("", 0),
        ("(null)", 0),
        ("gpu:4", 4),
        ("gpu:a100:8(S:0-1)", 8),
        ("gpu:a100:2,gpu:h100:2,shard:16", 4),
        ("craynetwork:4", 0),
    ],
)
def test_gpus_in_a_gres_field(gres, expected):
    assert gpus_of(gres) == expected


def test_flags_go_over_a_profile(tmp_path):
    profile = tmp_path / "site.yaml"
    profile.write_text(
        "partition: gpu\nnodes: 4\ngpus_per_node: 8\ncpus_per_task: 12\ntime: 1:30:00\n"
        "setup: [module load cuda]\nsbatch: {reservation: tests}\nshared_disk: true\nqos: null\n"
    )
    asked = read(profile, {"nodes": 2, "time": None})
    assert (asked.partition, asked.nodes, asked.gpus_per_node) == ("gpu", 2, 8)
    assert (asked.ranks, asked.world_size, asked.minutes) == (8, 16, 90)
    assert asked.setup == ("module load cuda",)
    assert asked.sbatch == {"reservation": "tests"}
    assert asked.shared_disk
    assert asked.qos is None


def test_without_gpus_there_is_one_rank_a_node():
    assert read(None, {"nodes": 3}).world_size == 3
    assert read(None, {"nodes": 3, "ranks_per_node": 2}).world_size == 6


def test_all_that_is_wrong_with_a_profile_is_said_at_once(tmp_path):
    profile = tmp_path / "site.yaml"
    profile.write_text("partitoin: gpu\nnodes: many\ntime: soon\nsbatch: {--wrap: x}\n")
    with pytest.raises(UsageError) as caught:
        read(profile, {})
    said = str(caught.value)
    assert "partitoin: unknown key; did you mean partition?" in said
    assert "nodes: " in said
    assert "'soon' is not a time" in said
    assert "--wrap" in said


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_what_is_no_profile(tmp_path, text):
    profile = tmp_path / "site.yaml"
    profile.write_text(text)
    if text:
        with pytest.raises(UsageError, match="profile"):
            read(profile, {})
    else:
        assert read(profile, {}).nodes == 1


def test_a_job_without_a_limit_could_not_save_before_it():
    with pytest.raises(UsageError, match="needs a limit"):
        read(None, {"time": "UNLIMITED"})
