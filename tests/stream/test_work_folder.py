"""What an interrupted `prepare` left, damaged before it goes on."""

import json
import os
import shutil

import pytest
from fuzzing import CASES, mutations, survive

from kaizen_dist.common.errors import KaizenError
from kaizen_dist.stream import add_tasks
from kaizen_dist.stream.prepare import prepare

QUICK = 20
"""Of each file."""


@pytest.fixture
def interrupted(make_folder, tmp_path, monkeypatch, snapshot):
    """(run `prepare` in a folder, the work of an interrupted one, what it makes undisturbed)."""
    source = make_folder({"train/a": 3, "train/b": 3, "test/a": 1, "test/b": 1})
    (source / "train/a/broken.jpg").write_bytes(b"no image")

    def run(out):
        options = {"tasks": 2, "shard_size": 2, "max_bad": 1.0, "progress": False}
        return prepare(f"folder:{source}", out, **options)

    run(tmp_path / "whole")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(add_tasks, "_commit", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "begun")
    return run, tmp_path / "begun", snapshot(tmp_path / "whole")


def told(files: dict[str, bytes]) -> dict:
    """A stream's files, without the words about images that were left out."""
    manifest = json.loads(files["stream.json"])
    for addition in manifest["additions"]:
        addition["bad"] = [image["id"] for image in addition["bad"]]
    return files | {"stream.json": manifest}


def fuzz(interrupted, name: str, count: int, out, snapshot) -> None:
    """Whatever the damage: an error, or the very stream that comes of it undisturbed, but for the
    words about images that were left out."""
    run, begun, whole = interrupted
    data = (begun / ".prepare" / name).read_bytes()
    for what, damaged in mutations(data, count):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(begun, out)
        (out / ".prepare" / name).write_bytes(damaged)
        outcome = survive(lambda: run(out))
        if not isinstance(outcome, KaizenError):
            assert told(snapshot(out)) == told(whole), what


FILES = ["settings.json", "task-00-train-000000.json", "task-00-train-000001.json"]


@pytest.mark.parametrize("name", FILES)
def test_no_damage_to_what_was_begun_makes_another_stream(interrupted, tmp_path, snapshot, name):
    fuzz(interrupted, name, QUICK, tmp_path / "out", snapshot)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_no_damage_at_length(interrupted, tmp_path, snapshot, name):
    fuzz(interrupted, name, CASES, tmp_path / "out", snapshot)


@pytest.mark.parametrize("kind", ["flipped", "cut", "other", "pipe", "device"])
@pytest.mark.parametrize("suffix", ["json", "npy", "tar"])
def test_a_finished_shard_that_is_damaged_is_written_again(
    interrupted, tmp_path, snapshot, kind, suffix
):
    """Its description, its index rows or the tar itself."""
    run, begun, whole = interrupted
    folder, name = begun / ".prepare", "task-00-train-000000"
    path = folder / f"{name}.{suffix}"
    other = folder / f"task-01-train-000000.{suffix}"
    if suffix == "tar":
        path, other = begun / "task-00/train-000000.tar", begun / "task-01/train-000000.tar"
    data = bytearray(path.read_bytes())
    data[-len(data) // 3] ^= 4
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        damaged = {"flipped": data, "cut": data[: len(data) // 2], "other": other.read_bytes()}
        path.write_bytes(damaged[kind])
    outcome = survive(lambda: run(begun))
    if not isinstance(outcome, KaizenError):
        assert snapshot(begun) == whole
    else:
        assert kind in ("pipe", "device")
