"""docs/extending.md and docs/python.md: what these pages say is run as it stands."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kaizen_dist as kd
from kaizen_dist.cli import app
from kaizen_dist.common import registry
from kaizen_dist.common.errors import UsageError
from kaizen_dist.learner.methods import method_class

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, kind: str) -> list[tuple[str, str]]:
    """(what follows the kind, content) of a page's code blocks."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}(.*)\n([\s\S]*?)^```$", text, re.M)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of docs/extending.md in an empty folder, on Python's path."""
    for about, content in blocks("extending.md", "(?:python|yaml)"):
        path = tmp_path / about.strip().removeprefix("file=")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_trusted", set())
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] == "mypkg"]:
        del sys.modules[name]


def test_the_page_about_parts_runs_as_written(folder):
    (commands,) = (content for _, content in blocks("extending.md", "bash"))
    for line in commands.splitlines():
        name, *arguments = shlex.split(line)
        assert name == "kaizen-dist"
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    lines = (folder / "runs/mine/lines.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("step")] == [
        f"step {n}" for n in (1, 2, 3, 4, 5, 6)
    ]
    assert lines[-1].startswith("after task 2: forgetting")
    assert list((folder / "runs/mine/tensorboard").iterdir())
    card = (folder / "runs/mine/export/task-02/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder / "runs/mine/export/task-02",
        env=os.environ | {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    # Of somebody else: it is not imported, and said how it can be.
    for name in [n for n in sys.modules if n.partition(".")[0] == "mypkg"]:
        del sys.modules[name]
    registry._trusted.clear()
    for arguments in (["export", "runs/mine"], ["predict", "runs/mine/export/task-02", "x.png"]):
        Path("x.png").write_bytes(b"")
        with pytest.raises(Exception, match="KAIZEN_DIST_TRUST=mypkg"):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "mypkg" not in sys.modules


def test_the_entry_points_of_the_page_are_found(folder, monkeypatch):
    ((_, declared),) = blocks("extending.md", "toml")
    tables = re.sub(r'\[project.entry-points."(.*)"\]', r"[\1]", declared).replace('"', "")
    about = folder / "mypkg-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mypkg\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(tables)
    importlib.invalidate_caches()
    assert method_class("align").__name__ == "Align"
    config = kd.load_config(
        "digits", "method=align", "ssl={}", "model.backbone=tiny", "log.to=[lines]"
    )
    assert config.ssl == {"hidden": 128, "dim": 64}
    stream = kd.prepare("colours:8", folder / "s", tasks=3, progress=False)
    assert sorted(stream.classes) == ["blue", "green", "red"]
    with pytest.raises(UsageError, match="did you mean align"):
        kd.load_config("digits", "method=alin", "ssl={}")


def test_the_page_about_python_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for _, code in blocks("python.md", "python"):
        exec(compile(code, "python.md", "exec"), names)
    assert names["results"].finished
    assert len(names["results"].accuracy) == 2
    assert names["features"].shape == (4, 512)
    assert names["features"].dtype == "float32"
    # A path gives what its pixels give; nothing gives nothing.
    (tmp_path / "one.png").write_bytes(names["images"][0])
    again = kd.embed(names["model"], [tmp_path / "one.png"], batch_size=1)
    assert again[0] == pytest.approx(names["features"][0], abs=1e-5)
    assert kd.embed(names["model"], []).shape == (0, 512)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(Exception, match=r"bad\.png: cannot be read"):
        kd.embed(names["model"], [tmp_path / "bad.png"])


def test_all_names_are_there_and_none_is_imported_unasked():
    program = (
        "import sys, kaizen_dist as kd; dir(kd); print('torch' in sys.modules, len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    torch, modules = done.stdout.split()
    assert torch == "False"
    assert int(modules) < 120
    assert set(kd.__all__) <= set(dir(kd))
    for name in kd.__all__:
        assert getattr(kd, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = kd.trian


@pytest.mark.parametrize("name", ["cifar10_laptop", "cifar10_laptop.yaml", "configs/methods/byol"])
def test_a_shipped_configuration_is_found_by_name_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert kd.load_config(name)
    (tmp_path / "own.yaml").write_text(f"base: {name}\ntrain: {{seed: 7}}\n")
    own = kd.load_config("own.yaml")
    assert own == kd.load_config(name, "train.seed=7")


@pytest.mark.parametrize("name", ["configs", "no_such", "../digits", "x" * 5000])
def test_a_name_that_is_none_is_a_usage_error(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(f"base: {name}\n")
    for file in ("own.yaml", name):
        with pytest.raises(UsageError):
            kd.load_config(file)


def test_training_from_python_on_two_ranks(tmp_path):
    stream = kd.prepare("digits", tmp_path / "stream", tasks=5, progress=False)
    options = ["train.max_steps=1", "eval.knn=false", "eval.forward_transfer=false"]
    config = kd.load_config("digits", *options, "train.threads=1")
    results = kd.train(config, stream, tmp_path / "run", procs=2, until=1)
    assert (results.world_size, len(results.accuracy), results.finished) == (2, 1, False)
    lanes = config.model_copy(update={"train": config.train.model_copy(update={"accumulate": 7})})
    with pytest.raises(UsageError, match=r"train\.accumulate"):
        kd.train(lanes, stream, tmp_path / "other", procs=2)
    assert not (tmp_path / "other").exists()
