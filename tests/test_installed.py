"""From its wheel, in an empty folder: every command that is documented finds its files."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kaizen_dist.config.shipped import find

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.cold,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("pip", "setuptools")),
        reason="pip and setuptools build the wheel",
    ),
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as a wheel brings it, without the checkout."""
    source, wheel, target = (tmp_path_factory.mktemp(n) for n in ("source", "wheel", "target"))
    for name in ("kaizen_dist", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *alone, "--no-build-isolation", "--wheel-dir", str(wheel), str(source)]
    subprocess.run(build, check=True)
    (made,) = wheel.iterdir()
    subprocess.run([*pip, "install", *alone, "--target", str(target), str(made)], check=True)
    return target


@pytest.fixture
def run(installed, tmp_path):
    """Runs python in an empty folder, with the installed package."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RANK")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
        )

    return run


def test_every_configuration_is_in_the_wheel(installed):
    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*.yaml")}

    assert files(installed / "kaizen_dist" / "configs") == files(ROOT / "configs")


def test_a_shipped_file_is_taken_and_said_where_there_is_none_of_ones_own(run, installed, tmp_path):
    assert run("-m", "kaizen_dist", "prepare", "digits", "--out", "s").returncode == 0
    asked = ["-m", "kaizen_dist", "inspect", "s", "--task", "1", "--json", "--config"]
    shipped = run(*asked, "configs/digits.yaml")
    assert shipped.returncode == 0, shipped.stderr
    place = installed / "kaizen_dist" / "configs" / "digits.yaml"
    assert shipped.stderr.startswith("configs/digits.yaml: not here")
    assert shipped.stderr.endswith(f"{place}\n")
    assert run(*asked, "digits").stdout == shipped.stdout
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.yaml").write_text("train: {batch_size: 32, seed: 3}\n")
    own = run(*asked, "configs/digits.yaml")
    assert (own.returncode, own.stderr) == (0, "")
    assert own.stdout != shipped.stdout


def test_the_public_interface_is_in_the_wheel_with_its_types(run, installed):
    assert (installed / "kaizen_dist" / "py.typed").is_file()
    program = (
        "import kaizen_dist as kd; print(kd.load_config('cifar10_laptop').sha256, kd.__file__)"
    )
    sha256, place = run("-c", program).stdout.split()
    assert len(sha256) == 64
    assert Path(place).is_relative_to(installed)


def test_every_sweep_reads_from_the_wheel(run):
    program = """
from pathlib import Path
from kaizen_dist.sweep.spec import read_sweep
from kaizen_dist.config.shipped import shipped_folder
names = [path.name for path in (shipped_folder() / "sweeps").glob("*.yaml")]
print(sum(len(read_sweep(Path("configs/sweeps", name)).runs) > 1 for name in names))
"""
    done = run("-c", program)
    assert done.stdout.strip() == str(len(list((ROOT / "configs" / "sweeps").iterdir()))), (
        done.stderr
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_runs_in_an_empty_folder(run, tmp_path):
    done = run("-m", "kaizen_dist", "demo", "--out", "demo")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "run" / "report.html").is_file()


def test_every_file_that_the_documentation_names_is_shipped(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts += [
        ROOT / "kaizen_dist" / "cli" / f"{n}.py" for n in ("app", "training", "sweeps", "benches")
    ]
    named = {
        name
        for path in texts
        for name in re.findall(r"configs/[\w/]+\.yaml", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert [name for name in sorted(named) if not find(Path(name)).is_file()] == []
