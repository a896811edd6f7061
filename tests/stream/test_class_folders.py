"""Which folders and files become images, and what is said of the others."""

import os
import shutil
import tarfile
import unicodedata

import pytest

from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.images import BadImageError
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.stream.sources import open_source


@pytest.fixture(params=["folder", "tar"])
def opened(request, tmp_path):
    """A source in a folder, as it is or in a tar."""

    def open_it(root, kind="folder"):
        place = root
        if request.param == "tar":
            place = tmp_path / "packed.tar"
            with tarfile.open(place, "w") as tar:
                tar.add(root, arcname=".")
        return open_source(f"{kind}:{place}", tmp_path / "work", progress=False)

    return open_it


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN"])
@pytest.mark.parametrize("val", ["val", "valid", "validation", "test", "Valid", "TEST"])
def test_the_validation_part_by_any_of_its_names(make_folder, opened, train, val):
    root = make_folder({f"{train}/a": 3, f"{train}/b": 2, f"{val}/a": 1, f"{val}/b": 1})
    source = opened(root)
    assert source.is_val.tolist() == [False] * 5 + [True] * 2
    assert source.told == (
        f"{train}/ is the training part: 5 images",
        f"{val}/ is the validation part: 2 images",
    )


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_test_is_left_out_beside_a_validation_part_and_that_is_said(make_folder, opened, val):
    root = make_folder({"train/a": 3, f"{val}/a": 1, "test/a": 4, "test/unknown": 2})
    source = opened(root)
    assert [source.name_of(i) for i in range(len(source)) if source.is_val[i]] == [
        f"{val}/a/000.jpg"
    ]
    assert source.told[2:] == (f"test/ is left out: {val}/ is the validation part (6 files)",)
    assert source.ignored == 6


def test_a_part_without_class_folders_is_none_and_is_said(make_folder, opened):
    root = make_folder({"train/a": 3, "test": 4, "train/b": 1})
    source = opened(root)
    assert not source.has_val
    assert source.told[1:] == ("ignored: test/ (4 files)",)


def test_what_systems_lay_beside_the_images_is_no_class(make_folder, opened):
    root = make_folder({"a": 3, "b": 2, "__MACOSX/a": 1})
    (root / "__MACOSX/._b").touch()
    for name in ("lost+found", ".Trash-1000", "a/.ipynb_checkpoints", "a/@eaDir"):
        (root / name).mkdir()
    shutil.copy(root / "a/000.jpg", root / "a/@eaDir/thumb.jpg")
    source = opened(root)
    assert (source.classes, len(source), source.ignored) == (["a", "b"], 5, 5)
    assert source.told == (
        "2 classes, 5 images, no validation part",
        "ignored: .Trash-1000, __MACOSX, a/.ipynb_checkpoints, a/@eaDir, lost+found",
    )


def test_odd_entries_that_are_no_images_do_not_matter(make_folder, opened):
    root = make_folder({"a": 2, "b": 2})
    (root / "a/.#notes.txt").symlink_to("someone@host.123:456")  # an editor's lock
    (root / "README").symlink_to("/nowhere/README")
    (root / "a/.up").symlink_to("..")
    os.mkfifo(root / "b/pipe")
    source = opened(root)
    assert (len(source), source.ignored) == (4, 4)
    odd, hidden = source.told[1].split("), a/")
    assert odd.startswith("ignored: README (")
    assert hidden.endswith("a/.up")


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_had(make_folder, opened):
    root = make_folder({"a": 2, "b": 2})
    (root / "a/gone.jpg").symlink_to("/nowhere/gone.jpg")
    source = opened(root)
    assert (len(source), source.name_of(2)) == (5, "a/gone.jpg")
    with pytest.raises(BadImageError, match=r"nowhere|neither a plain file, nor a link"):
        source.read(2)


def test_a_class_folder_may_be_a_link_and_a_loop_is_told(make_folder, tmp_path):
    root = make_folder({"a": 2, "b": 1})
    (root / "b").rename(tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a/up").symlink_to("..")
    source = open_source(f"folder:{root}", tmp_path, progress=False)
    assert (source.classes, len(source)) == (["a", "b"], 3)
    assert source.told[1] == "ignored: a/up (a link back to a folder that it lies in)"


@pytest.mark.parametrize(("closed", "error"), [("b", True), ("val", True), ("notes", False)])
def test_a_folder_that_cannot_be_opened_matters_where_images_are_due(
    make_folder, tmp_path, monkeypatch, closed, error
):
    root = make_folder({"train/a": 2, "train/b": 2, "val/a": 1, "notes/a": 1})
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith(f"/{closed}"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    if error:
        with pytest.raises(DataError, match=f"{closed} cannot be opened: Permission denied"):
            open_source(f"folder:{root}", tmp_path, progress=False)
    else:
        source = open_source(f"folder:{root}", tmp_path, progress=False)
        assert source.told[2:] == ("ignored: notes (cannot be opened: Permission denied)",)


def test_a_class_may_be_spelled_with_its_accent_apart(make_folder, opened):
    """macOS writes the accents of names behind their letters; other systems write one letter."""
    name = "Café"
    apart = unicodedata.normalize("NFD", name)
    assert apart != name
    source = opened(make_folder({f"train/{apart}": 2, "train/b": 1, f"val/{name}": 1}))
    assert source.classes == [apart, "b"]
    assert source.labels.tolist() == [0, 0, 1, 0]


def test_domains_are_told(make_folder, opened):
    source = opened(make_folder({"photo/a": 2, "sketch/a": 1}), "domains")
    assert source.told == ("2 domains, 1 class, 3 images",)


def test_a_file_too_large_to_be_an_image_is_not_read(make_folder, tmp_path):
    root = make_folder({"a": 1})
    with (root / "a/huge.jpg").open("wb") as file:
        file.truncate(1 << 40)
    source = open_source(f"folder:{root}", tmp_path, progress=False)
    with pytest.raises(BadImageError, match="larger than 536,870,912 bytes"):
        source.read(1)


# ---- depth and faults -------------------------------------------------------------------


def test_a_class_is_the_first_folder_below_the_part(make_folder, opened):
    """As torchvision's ImageFolder walks."""
    source = opened(make_folder({"train/b/x/y": 2, "train/b": 1, "train/a": 1, "val/a/deep": 1}))
    names = ["a/000.jpg", "b/000.jpg", "b/x/y/000.jpg", "b/x/y/001.jpg"]
    assert [source.name_of(i) for i in range(len(source))] == [
        *(f"train/{name}" for name in names),
        "val/a/deep/000.jpg",
    ]
    assert (source.classes, source.labels.tolist()) == (["a", "b"], [0, 1, 1, 1, 0])
    source = opened(make_folder({"b/x": 1, "b/x/y": 1, "a": 1}, "alone"))
    assert (source.classes, source.labels.tolist()) == (["a", "b"], [0, 1, 1])
    source = opened(make_folder({"photo/a/x": 1, "photo/a": 1}, "in domains"), "domains")
    assert (source.classes, source.domains, len(source)) == (["a"], ["photo"], 2)


def test_deep_folders_are_numbered_as_torchvision_does(make_folder, tmp_path):
    from torchvision.datasets import ImageFolder

    root = make_folder({"b/x": 3, "b/a/c": 2, "b": 2, "a/b": 1, "C": 2})
    source, theirs = open_source(f"folder:{root}", tmp_path, progress=False), ImageFolder(root)
    assert source.classes == theirs.classes
    own = {source.name_of(i): int(source.labels[i]) for i in range(len(source))}
    assert own == {os.path.relpath(path, root): label for path, label in theirs.samples}


def test_all_faults_are_told_at_once_and_left_out_if_asked(make_folder, tmp_path, monkeypatch):
    layout = {f"train/empty{n}": 0 for n in range(8)} | {
        "train/a": 2,
        "train/b": 1,
        "train/shut": 1,
    }
    root = make_folder(layout | {"val/a": 1, "val/cow": 1, "val/b": 0, "__MACOSX/a": 1})
    (root / "train/a/gone.jpg").symlink_to("/nowhere/gone.jpg")
    for name in ("x.heic", "y.HEIC", "z.cr2"):
        (root / "train/empty0" / name).touch()
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("/shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError) as raised:
        open_source(f"folder:{root}", tmp_path, progress=False)
    assert str(raised.value).splitlines() == [
        f"folder:{root} has faults:",
        "  class folders without images (9): train/empty0, train/empty1, train/empty2, "
        "train/empty3, train/empty4, train/empty5 and 3 more",
        "  folders that cannot be read (1): train/shut cannot be opened: Permission denied",
        "  class folders of val/ without a counterpart in train/ (1): val/cow",
        "  train/ is the training part: 4 images",
        "  val/ is the validation part: 1 image",
        "  images in formats that are not read: 2 heic, 1 cr2; convert them, e.g. to jpg",
        "  images that cannot be read (1): train/a/gone.jpg (a link that leads nowhere)",
        "  ignored: train/shut (cannot be opened: Permission denied), __MACOSX, "
        "train/empty0/x.heic, train/empty0/y.HEIC, train/empty0/z.cr2, val/cow/000.jpg",
        "mend them, or leave out what is faulty with --skip-bad",
    ]
    source = open_source(f"folder:{root}", tmp_path, progress=False, skip_bad=True)
    assert (source.classes, len(source), source.is_val.sum()) == (["a", "b"], 5, 1)
    assert source.told[-1] == (
        "left out: class folders of val/ without a counterpart in train/ (1): val/cow"
    )


def test_a_stream_without_what_is_faulty(make_folder, tmp_path):
    root = make_folder({"a": 6, "b": 6, "empty": 0})
    (root / "a/gone.jpg").symlink_to("/nowhere/gone.jpg")
    with pytest.raises(DataError, match=r"class folders without images \(1\): empty"):
        prepare(f"folder:{root}", tmp_path / "out", tasks=2, progress=False)
    assert not (tmp_path / "out").exists()
    stream = prepare(f"folder:{root}", tmp_path / "out", tasks=2, skip_bad=True, progress=False)
    assert sorted(stream.classes) == ["a", "b"]
    assert [image.name for image in stream.manifest.bad] == ["a/gone.jpg"]
    again = prepare(f"folder:{root}", tmp_path / "out", tasks=2, progress=False)
    assert again.fingerprint == stream.fingerprint
    (root / "empty/x.png").write_bytes((root / "a/000.jpg").read_bytes())
    (root / "void").mkdir()
    stream = extend(tmp_path / "out", f"folder:{root}", skip_bad=True, progress=False)
    assert stream.classes[2:] == ["empty"]
