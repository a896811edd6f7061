"""What is asked of a cluster: profiles, flags, and what is wrong with them."""

import pytest

from kaizen_dist.common.errors import UsageError
from kaizen_dist.launch.resources import read
from kaizen_dist.launch.slurm import gpus_of, minutes


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


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"account": "a\ntouch x"}, "account: "),
        ({"qos": "a\rb"}, "qos: "),
        ({"constraint": "\x1b[31m"}, "constraint: "),
        ({"mem": "64G\n"}, "mem: "),
        ({"partition": "a\u202eb"}, "partition: "),
        ({"container": "x\n"}, "container: "),
        ({"exclude": ("n1", "n\n2")}, "exclude: "),
        ({"sbatch": {"comment": "a\nb"}}, "sbatch: "),
        ({"environment": {"A": "b\0"}}, "environment: "),
        ({"environment": {"A B": "c"}}, "environment.A B"),
        ({"srun_args": ("--x\n",)}, "srun_args: "),
        ({"setup": ("a\x1b",)}, "setup: "),
        ({"account": "a\udcff"}, "account: "),
        ({"account": "a\\b"}, "sbatch removes a backslash"),
        ({"sbatch": {"comment": "x\\"}}, "sbatch removes a backslash"),
        ({"python": "--version"}, "python: it would be taken for an option"),
        ({"container": "-x"}, "container: it would be taken for an option"),
        ({"mounts": ("/a:/b",)}, "mounts: a folder with : or ,"),
        ({"sbatch": {"output": "x"}}, "output is set for every run"),
        ({"time": "9" * 12}, "longer than ten years"),
        ({"signal_seconds": 70_000}, "signal_seconds: "),
    ],
)
def test_what_would_be_another_line_option_or_file_is_refused_by_its_field(values, said):
    with pytest.raises(UsageError) as caught:
        read(None, values)
    assert said in str(caught.value)


def test_what_is_odd_and_no_danger_stays():
    """Lines of shell may have several; quotes, spaces and signs of the shell are quoted."""
    kept = {
        "setup": ("if true\nthen\tmodule load cuda\nfi",),
        "account": 'it\'s $(a) `b` "c"; -d #e é✓',
        "constraint": "[rack1|rack2]*2&gpu",
        "sbatch": {"mail-type": "END,FAIL"},
    }
    assert read(None, kept).model_dump(include=set(kept)) == kept


def test_files_are_those_of_the_folder_one_submits_from(tmp_path, monkeypatch):
    """A job works in RUN/slurm/code."""
    monkeypatch.chdir(tmp_path)
    for name in ("image.sif", "venv-python", "python3"):
        (tmp_path / name).touch()
    asked = read(None, {"container": "image.sif", "mounts": ["data"], "python": "./venv-python"})
    assert asked.container == str(tmp_path / "image.sif")
    assert asked.mounts == (str(tmp_path / "data"),)
    assert asked.python == str(tmp_path / "venv-python")
    # Of a registry, and of PATH.
    asked = read(None, {"container": "nvcr.io#nvidia/pytorch:24.01", "python": "python3"})
    assert (asked.container, asked.python) == ("nvcr.io#nvidia/pytorch:24.01", "python3")
