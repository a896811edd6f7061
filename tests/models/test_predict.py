"""Naming images: the command, its exit codes, and how little it loads."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.models.export import export
from kaizen_dist.models.network import load_model
from kaizen_dist.models.predict import images_at, predict, raise_if_broken

TRAINING = (
    "deepspeed",
    "kaizen_dist.config",
    "kaizen_dist.engine",
    "kaizen_dist.evaluation",
    "kaizen_dist.learner.learner",
    "kaizen_dist.learner.methods",
    "kaizen_dist.stream.manifest",
    "kaizen_dist.training.trainer",
    "kaizen_dist.views.backend",
    "lightly",
    "matplotlib",
    "nvidia",
    "onnx",
    "sklearn",
    "submitit",
    "tensorboard",
    "webdataset",
)


@pytest.fixture(scope="module")
def first_task(trained, tmp_path_factory):
    """The export after the first task; do not change it."""
    return export(trained("cifar").path, 0, tmp_path_factory.mktemp("exports") / "first")


@pytest.fixture
def copied(first_task, tmp_path):
    """One to be damaged."""
    return shutil.copytree(first_task, tmp_path / "copy")


@pytest.fixture
def save_image():
    """A black picture; `format` if it is not that of its name."""

    def save(path, size=(12, 9), **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        if "exif" in options:
            exif = Image.Exif()
            exif.update(options["exif"])
            options["exif"] = exif
        if options.get("format") == "MPO":
            options |= {"save_all": True, "append_images": [Image.new("RGB", size, "red")]}
        Image.new("RGB", size).save(path, **options)

    return save


def kaizen(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "kaizen_dist", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_it_loads_nothing_of_the_training(first_task, odd_files):
    code = (
        "import json, sys; from pathlib import Path\n"
        "from kaizen_dist.models.predict import predict\n"
        "from kaizen_dist.models.network import load_model\n"
        "model = load_model(Path(sys.argv[1]))\n"
        "assert len(list(predict(model, [Path(sys.argv[2])], progress=False))) == 1\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(first_task), str(odd_files[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert "kaizen_dist.models.predict" in loaded
    heavy = [m for m in loaded if any(m == t or m.startswith(f"{t}.") for t in TRAINING)]
    assert heavy == []


def test_a_broken_image_is_named_after_the_others_have_been_answered(
    first_task, odd_files, tmp_path
):
    (tmp_path / "notes.png").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(odd_files[1].read_bytes()[:2000])
    (tmp_path / "empty.png").touch()
    shutil.copy(odd_files[0], tmp_path / "whole.png")
    (tmp_path / "readme.txt").write_text("not asked about")
    done = kaizen("predict", first_task, tmp_path, odd_files[2], "--top", 2, code=3)
    answered = [line.split(": ")[0] for line in done.stdout.splitlines()]
    assert answered == [str(tmp_path / "whole.png"), str(odd_files[2])]
    for line in done.stdout.splitlines():
        assert line.count("%") == 2
    assert "3 of 5 images cannot be decoded" in done.stderr
    for name in ("notes.png: no image of a known format", "cut.jpg: ", "empty.png: an empty file"):
        assert str(tmp_path / name) in done.stderr
    assert "Traceback" not in done.stderr
    again = CliRunner().invoke(app, ["predict", str(first_task), str(tmp_path), "--json"])
    assert isinstance(again.exception, DataError)
    as_json = json.loads(again.stdout)
    assert [list(row) for row in as_json] == [
        ["image", "error"],
        ["image", "error"],
        ["image", "error"],
        ["image", "classes"],
    ]


def test_json_has_the_classes_in_order(first_task, digit_files, stream):
    images = [path for path, _ in digit_files[0][:5]]
    arguments = [str(first_task), *map(str, images), "--top", "99", "--json", "--batch", "2"]
    done = CliRunner().invoke(app, ["predict", *arguments])
    rows = json.loads(done.stdout)
    assert [row["image"] for row in rows] == list(map(str, images))
    known = {stream.classes[c] for c in stream.tasks[0].classes}
    for row in rows:
        values = [answer["probability"] for answer in row["classes"]]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-6)
        assert {answer["class"] for answer in row["classes"]} == known


def test_the_batch_does_not_matter(first_task, odd_files):
    model = load_model(first_task)
    one, many = (
        list(predict(model, odd_files, batch_size=size, progress=False)) for size in (1, 5)
    )
    for ours, theirs in zip(one, many, strict=True):
        assert [name for name, _ in ours.ranked] == [name for name, _ in theirs.ranked]
        for (_, a), (_, b) in zip(ours.ranked, theirs.ranked, strict=True):
            assert a == pytest.approx(b, abs=1e-6)


def test_folders_are_searched_in_order_and_hidden_files_left_alone(tmp_path):
    picture = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for name in ("b/2.png", "b/1.JPG", "a/c/3.webp", "b/.4.png", "b/5.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG")
    found = [str(path.relative_to(tmp_path)) for path in images_at([tmp_path])]
    assert found == ["a/c/3.webp", "b/1.JPG", "b/2.png"]
    # A file that is named is taken for an image, whatever its name.
    assert images_at([tmp_path / "b/5.txt"]) == [tmp_path / "b/5.txt"]


def test_links_are_followed_and_hidden_folders_left_alone(tmp_path, save_image):
    root = tmp_path / "root"
    for name in ("root/a/1.png", "elsewhere/2.png", "root/.hidden/3.png", "root/__MACOSX/4.png"):
        save_image(tmp_path / name)
    (root / "linked").symlink_to("../elsewhere")
    (root / "a/up").symlink_to("..")
    (root / "5.png").symlink_to("a/1.png")
    found = [str(path.relative_to(root)) for path in images_at([root])]
    assert found == ["5.png", "a/1.png", "linked/2.png"]


def test_what_cannot_be_had_is_an_answer_and_never_waited_for(first_task, tmp_path, save_image):
    save_image(tmp_path / "whole.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to("/nowhere/gone.png")
    (tmp_path / "gone.txt").symlink_to("/nowhere/gone.txt")
    done = kaizen("predict", first_task, tmp_path, "/dev/zero", code=3)
    assert done.stdout.startswith(f"{tmp_path / 'whole.png'}: ")
    for line in (
        "4 of 5 images cannot be decoded",
        f"{tmp_path / 'pipe.jpg'}: not a regular file",
        f"{tmp_path / 'zero.png'}: not a regular file",
        f"{tmp_path / 'gone.png'}: No such file or directory",
        "  /dev/zero: not a regular file",
    ):
        assert line in done.stderr


def test_odd_images_are_answered_or_named(first_task, tmp_path, save_image):
    for name, options in (("turned.tiff", {"exif": {0x112: 6}}), ("phone.jpg", {"format": "MPO"})):
        save_image(tmp_path / name, **options)
    save_image(tmp_path / "long.png", size=(100_000, 1))
    Image.fromarray(np.full((9, 9), 7.5, np.float32)).save(tmp_path / "fractions.tiff")
    answers = {a.image.name: a for a in predict(load_model(first_task), images_at([tmp_path]))}
    assert answers["turned.tiff"].ranked
    assert answers["phone.jpg"].ranked
    assert "one side is more than 1,000 times the other" in answers["long.png"].problem
    assert "black and white nobody knows" in answers["fractions.tiff"].problem


def test_a_turned_photo_is_named_as_the_upright_one(first_task, tmp_path):
    """The pixels are stored on their side, and EXIF says how to hold them."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "turned.png", exif=exif)
    model = load_model(first_task)
    assert model.description.upright
    turned, upright = predict(model, images_at([tmp_path]), progress=False)
    assert turned.ranked == upright.ranked


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, save_image, monkeypatch):
    save_image(tmp_path / "a/1.png")
    save_image(tmp_path / "closed/1.png")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    for place in (tmp_path, tmp_path / "closed"):
        with pytest.raises(UsageError, match=f"{tmp_path}/closed: cannot be opened: Permission"):
            images_at([place])


def test_places_without_images_are_all_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as caught:
        images_at([tmp_path / "none.png", tmp_path / "empty"])
    assert "none.png: no such file" in str(caught.value)
    assert "empty: no image in this folder" in str(caught.value)


def test_a_format_that_starts_programs_is_not_opened(first_task, tmp_path):
    eps = tmp_path / "page.eps"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(eps)
    answers = list(predict(load_model(first_task), [eps], progress=False))
    with pytest.raises(DataError, match=r"page\.eps: no image of a known format"):
        raise_if_broken(answers)


# ---- a folder that is no model, or a damaged one ----------------------------------------


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(DataError, match=r"holds no model\.json; make one with `kaizen-dist export"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "classifier.safetensors"])
def test_a_flipped_byte_is_refused_by_name(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[-5] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: its bytes are not those"):
        load_model(copied)
    (copied / name).unlink()
    with pytest.raises(DataError, match=f"{name}: missing"):
        load_model(copied)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": "other"}, "format: Input should be 'kaizen_dist.model'"),
        ({"format_version": 2}, "format_version: this program reads 1, got 2"),
        ({"classes": [1, 2]}, "classes.0: Input should be a valid string, got 1"),
        ({"seen": []}, "seen: Tuple should have at least 1 item"),
        ({"seen": [10]}, "seen: 10 is not one of 5 classes"),
        ({"seen": [True]}, "seen.0: Input should be a valid integer, got True"),
        ({"task": None}, "task: Input should be a valid integer"),
        ({"task": "0"}, "task: Input should be a valid integer, got '0'"),
        ({"view.size": 0}, "size: Input should be greater than or equal to 1, got 0"),
        ({"view.std": [1, 0, 1]}, "std.1: Input should be greater than or equal to 0.001, got 0"),
        ({"view.mean": [1, 0]}, "mean.2: Field required"),
        (
            {"view.interpolation": "nearest"},
            "interpolation: Input should be 'bicubic', got 'nearest'",
        ),
        ({"network.stem": "tulip"}, "stem: Input should be .* got 'tulip'"),
        ({"network.hidden": "wide"}, "hidden: Input should be a valid integer, got 'wide'"),
        ({"network.backbone": "resnet14"}, "do not fit together"),
        ({"network.backbone": "resnet19"}, "'resnet19' is unknown"),
        ({"network.hidden": 25}, "do not fit together"),
    ],
)
def test_a_wrong_description_is_refused_with_the_field(copied, changed, said):
    path = copied / "model.json"
    content = json.loads(path.read_text())
    for key, value in changed.items():
        *sections, name = key.split(".")
        inner = content[sections[0]] if sections else content
        inner[name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=said) as caught:
        load_model(copied)
    assert "export the model again" in str(caught.value)


def test_a_description_that_is_no_json(copied):
    (copied / "model.json").write_text("{")
    with pytest.raises(DataError, match=r"model\.json: .*; export the model again"):
        load_model(copied)
