"""The walk below a folder: what is found, what is passed over, and what is told of."""

import os

import pytest

from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.files import folders
from kaizen_dist.stream.files.file_tree import open_tree
from kaizen_dist.stream.files.folders import Kind, walk


def walked(root):
    return {entry.name: entry for entry in walk(root)}


def test_hidden_entries_and_systems_folders_are_not_looked_at(tmp_path):
    for name in (".git/x", "__MACOSX/a/x.jpg", "a/.ipynb_checkpoints/x.jpg", "a/@eaDir/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "a/1.jpg").write_bytes(b"four")
    found = walked(tmp_path)
    passed = {name for name, entry in found.items() if entry.kind is Kind.PASSED_OVER}
    assert passed == {".git", "__MACOSX", "lost+found", "a/.ipynb_checkpoints", "a/@eaDir"}
    assert {name: entry.kind for name, entry in found.items() if name not in passed} == {
        "a": Kind.FOLDER,
        "a/1.jpg": Kind.FILE,
    }
    assert found["a/1.jpg"].size == 4


def test_links_are_followed_and_what_leads_nowhere_is_told(tmp_path):
    (tmp_path / "elsewhere/b").mkdir(parents=True)
    (tmp_path / "elsewhere/b/1.jpg").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "b").symlink_to("../elsewhere/b")
    (root / "again").symlink_to("../elsewhere/b")
    (root / "1.jpg").symlink_to("b/1.jpg")
    (root / "gone").symlink_to("nowhere")
    (root / "me").symlink_to("me")
    (root / "zero").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe")
    found = walked(root)
    assert {name for name, entry in found.items() if entry.kind is Kind.FILE} == {
        *("b/1.jpg", "again/1.jpg", "1.jpg")
    }
    odd = {name: entry.why for name, entry in found.items() if entry.kind is Kind.ODD}
    nowhere, special = "a link that leads nowhere", "a device or a pipe, not a file"
    assert odd == {"gone": nowhere, "me": nowhere, "zero": special, "pipe": special}


def test_a_link_back_ends(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/1.jpg").touch()
    (tmp_path / "a/b/up").symlink_to("..")
    (tmp_path / "a/b/top").symlink_to(tmp_path)
    found = walked(tmp_path)
    assert {name: entry.kind for name, entry in found.items()} == {
        "a": Kind.FOLDER,
        "a/b": Kind.FOLDER,
        "a/b/1.jpg": Kind.FILE,
        "a/b/up": Kind.ODD,
        "a/b/top": Kind.ODD,
    }
    assert found["a/b/up"].why == "a link back to a folder that it lies in"


@pytest.mark.parametrize("to_all", [False, True])
def test_links_that_multiply_end_too(tmp_path, to_all):
    """30 folders, each with two links to the next one, or with a link to each other one."""
    names = [f"f{number:02d}" for number in range(30)]
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
        following = names if to_all else names[number + 1 : number + 2] * 2
        for place, other in enumerate(following):
            (tmp_path / name / f"l{place}").symlink_to(f"../{other}")
    found = walked(tmp_path)
    assert {f"{name}/1.jpg" for name in names} <= found.keys()
    files = sum(entry.kind is Kind.FILE for entry in found.values())
    assert files <= 30 * folders.MOST_VISITS


def test_a_folder_that_cannot_be_opened(tmp_path, monkeypatch):
    for name in ("a", "private"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith(("private", "missing")):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = walked(tmp_path)
    assert found["private"] == ("private", Kind.CLOSED, 0, "cannot be opened: Permission denied")
    assert found["a/1.jpg"].kind is Kind.FILE
    assert open_tree(tmp_path, tmp_path, progress=False).closed == {
        "private": "cannot be opened: Permission denied"
    }
    (tmp_path / "missing").mkdir()
    with pytest.raises(PermissionError):
        walked(tmp_path / "missing")
    with pytest.raises(DataError, match="missing: cannot be read: Permission denied"):
        open_tree(tmp_path / "missing", tmp_path, progress=False)
