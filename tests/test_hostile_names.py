"""Names of others on a Latin-1 terminal, through every verb: shown, not obeyed, and no failure."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from killing import SMALL
from PIL import Image

from kaizen_dist.stream.manifest import load_manifest
from kaizen_dist.stream.manifest_schema import StreamManifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLASSES = ["[/]", "[red]x", "a|b <i>&", ":smile:", "\u202eturned", "猫 −"]
SETTINGS = [f"{key}={value}" for key, value in SMALL.items()]
FOREIGN = {b"\x1b", "\u202e".encode(), "猫".encode(), b"\xff"}


@pytest.fixture(scope="module")
def stream(shared_folder) -> Path:
    """Six classes in three tasks, with names that a folder cannot have too."""
    chance = np.random.default_rng(0)
    for number in range(len(CLASSES)):
        folder = shared_folder / "images" / f"class-{number}"
        folder.mkdir(parents=True)
        for image in range(20):
            pixels = chance.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{image}.png")
    out = shared_folder / "stream"
    kaizen("prepare", f"folder:{shared_folder / 'images'}", "--out", out, "--tasks", 3)
    manifest, names = load_manifest(out), iter(CLASSES)
    renamed = [
        task.model_copy(update={"new_classes": [next(names) for _ in task.new_classes]})
        for task in manifest.tasks
    ]
    forged = StreamManifest.of(manifest.additions, renamed)
    (out / "stream.json").write_bytes(forged.written())
    return out


def kaizen(*arguments: object, code: int = 0) -> bytes:
    """What a command says on a Latin-1 terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "kaizen_dist", *map(str, arguments)],
        env=os.environ | {"PYTHONIOENCODING": "latin-1", "COLUMNS": "160"},
        capture_output=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said.decode("latin-1")
    assert b"Traceback" not in said
    assert not [foreign for foreign in FOREIGN if foreign in said]
    return said


def test_every_verb_shows_them_as_they_are(stream, shared_folder, configs, tmp_path):
    run = tmp_path / "run [b] 猫 \u202e\x1b[31m"
    said = kaizen(
        "train", configs / "digits.yaml", *SETTINGS, "--stream", stream, "--out", run
    ).decode("latin-1")
    for name in ("[/]", "[red]x", ":smile:", "\\u202eturned", "\\u732b \\u2212"):
        assert name in said
    assert "[b] \\u732b \\u202e\\x1b[31m" in said
    assert kaizen("verify", stream, "--decode").endswith(b"whole\n")
    assert b"[/]" in kaizen("eval", run)
    assert b"[/]" in kaizen("eval", run, "--page", tmp_path / "eval.html", "--json")
    kaizen("status", run)
    kaizen("status", run, "--json")
    kaizen("report", run)
    assert kaizen("report", run, "--markdown").count(b"\n") == 3
    kaizen("export", run)
    image = tmp_path / "[b] \x1b[31m\udcff.png"
    image.write_bytes((shared_folder / "images" / "class-0" / "0.png").read_bytes())
    model = run / "export" / "task-02"
    assert b"[b] \\x1b[31m\\xff.png: " in kaizen("predict", model, image, "--top", 6)
    kaizen("predict", model, image, "--json")
    kaizen("resume", run)
    for verb in (["verify"], ["train", "--stream"], ["eval"], ["status"], ["report"]):
        wrong = [*verb, tmp_path / "not [b] \x1b[31m\udcff"]
        if verb[0] == "train":
            wrong = ["train", configs / "digits.yaml", *wrong[1:], "--out", tmp_path / "r"]
        assert b"not [b] \\x1b[31m\\udcff" in kaizen(*wrong, code=3)


@pytest.mark.parametrize("which", ["run", "stream"])
def test_a_place_that_no_file_can_note_is_refused_first(stream, configs, tmp_path, which):
    odd = tmp_path / "odd\udcff"
    if which == "stream":
        shutil.copytree(stream, odd)
    places = {"stream": stream, "run": tmp_path / "run"} | {which: odd}
    said = kaizen(
        *("train", configs / "digits.yaml", *SETTINGS, "--stream", places["stream"]),
        *("--out", places["run"]),
        code=2,
    )
    assert b"odd\\udcff: a name that is not UTF-8" in said
    assert not places["run"].exists()
