"""Checkpoints on disk: whole or not there, found in order, and told from damaged ones."""

import json

import pytest
from fuzzing import CASES, mutations, survive

from kaizen_dist.common.errors import WriteError
from kaizen_dist.engine.checkpoint import layout


def written(run, task: int, step: int):
    name = layout.name_of(task, step)
    layout.begin(run, name)
    folder = layout.hidden(run, name)
    (folder / "__0_0.distcp").write_bytes(bytes(range(200)))
    layout.write_state(folder, {"cursor": {"task": task, "step": step}})
    files = layout.entries(folder, 0, 2) | layout.entries(folder, 1, 2)
    return layout.commit(folder, files)


def names(run):
    return [path.name for path in layout.found(run)]


def test_a_checkpoint_has_its_name_once_it_is_whole(tmp_path):
    path = written(tmp_path, 1, 400)
    assert path == tmp_path / "checkpoints" / "t01-s000400"
    assert layout.faults(path) == []
    assert json.loads((path / "state.json").read_text())["cursor"] == {"task": 1, "step": 400}
    layout.begin(tmp_path, "t01-s000500")
    assert names(tmp_path) == ["t01-s000400"], "what is unfinished does not count"
    assert layout.found(tmp_path / "none") == []


def test_they_come_in_the_order_of_the_run(tmp_path):
    for task, step in ((2, 0), (0, 900), (10, 5), (1, 1_000_000), (1, 20)):
        written(tmp_path, task, step)
    expected = ["t00-s000900", "t01-s000020", "t01-s1000000", "t02-s000000", "t10-s000005"]
    assert names(tmp_path) == expected


def test_a_second_writing_replaces_the_first(tmp_path):
    (written(tmp_path, 0, 5) / "stray").write_text("of the first")
    assert not (written(tmp_path, 0, 5) / "stray").exists()


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "left"),
    [
        (1, 0, ["t01-s000030"]),
        (3, 0, ["t01-s000010", "t01-s000020", "t01-s000030"]),
        (1, 20, ["t00-s000020", "t01-s000000", "t01-s000020", "t01-s000030"]),
    ],
)
def test_what_stays(tmp_path, keep_last, keep_every, left):
    for task, step in ((0, 10), (0, 20), (0, 30), (1, 0), (1, 10), (1, 20), (1, 30)):
        written(tmp_path, task, step)
    layout.prune(tmp_path, keep_last, keep_every)
    assert names(tmp_path) == left
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == set(left), "no leftovers"


@pytest.mark.parametrize("file", ["__0_0.distcp", "state.json"])
def test_damage_is_named_wherever_it_is(tmp_path, file):
    path = written(tmp_path, 0, 7)
    data = (path / file).read_bytes()
    for position in (0, len(data) // 2, len(data) - 1):
        flipped = bytearray(data)
        flipped[position] ^= 1
        (path / file).write_bytes(flipped)
        (fault,) = layout.faults(path)
        assert f"{path / file} is damaged" in fault
    (path / file).write_bytes(data[:-1])
    (fault,) = layout.faults(path)
    assert f"{path / file} has {len(data) - 1} bytes" in fault
    (path / file).unlink()
    assert layout.faults(path) == [f"{path / file} is missing"]
    # Every fault is found by one of the ranks that share the work.
    shared = [layout.faults(path, part, 3) for part in range(3)]
    assert [f for part in shared for f in part] == [f"{path / file} is missing"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"version": 1}', '{"version": 9, "files": {}}']
)
def test_a_broken_manifest_is_named(tmp_path, content):
    path = written(tmp_path, 0, 7)
    (path / "manifest.json").write_text(content)
    (fault,) = layout.faults(path)
    assert "manifest.json" in fault


def test_a_manifest_names_only_its_own_files(tmp_path):
    path = written(tmp_path, 0, 7)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../secret"] = {"bytes": 1, "sha256": "0"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    (fault,) = layout.faults(path)
    assert "manifest.json cannot be read (files" in fault


def test_a_file_that_the_manifest_does_not_list_is_a_fault(tmp_path):
    """Else it would be read unchecked: DCP's index, or a rank's part."""
    path = written(tmp_path, 0, 7)
    (path / ".metadata").write_bytes(b"of somebody else")
    (fault,) = layout.faults(path)
    assert fault == f"{path / 'manifest.json'} does not list '.metadata', which is there"


def test_links_in_place_of_a_checkpoint_or_its_files_are_not_followed(tmp_path):
    real = written(tmp_path / "theirs", 0, 7)
    ours = tmp_path / "ours" / "checkpoints"
    ours.mkdir(parents=True)
    (ours / "t00-s000007").symlink_to(real)
    (fault,) = layout.faults(ours / "t00-s000007")
    assert "is a link" in fault
    layout.prune(tmp_path / "ours", 1, 0)
    # What is to be written there takes the link's place, and so does what is kept no longer.
    (ours / ".t00-s000007.tmp").symlink_to(real)
    written(tmp_path / "ours", 0, 7)
    written(tmp_path / "ours", 0, 8)
    layout.prune(tmp_path / "ours", 1, 0)
    assert [p.name for p in ours.iterdir()] == ["t00-s000008"]
    assert layout.faults(real) == []
    file = ours / "t00-s000008" / "__0_0.distcp"
    file.unlink()
    file.symlink_to(real / file.name)
    assert len(layout.faults(file.parent)) == 1


def mutated_manifests(folder, count):
    """A damaged manifest is a fault of its checkpoint, and names it; or it still says the same
    of every file, and of no other one."""
    path = written(folder, 0, 7)
    manifest = path / "manifest.json"
    whole = manifest.read_bytes()
    for what, data in mutations(whole, count):
        manifest.write_bytes(data)
        found = survive(lambda: layout.faults(path))
        assert all(str(path) in fault for fault in found), what
        if not found:
            assert json.loads(data) == json.loads(whole), what


def test_no_damage_of_a_manifest_goes_unnoticed_or_is_a_traceback(tmp_path):
    mutated_manifests(tmp_path, 60)


@pytest.mark.slow
def test_500_mutations_of_a_manifest(tmp_path):
    mutated_manifests(tmp_path, CASES)


def test_a_folder_that_cannot_be_written_is_a_write_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(WriteError, match="t00-s000007"):
        layout.begin(tmp_path, "t00-s000007")
