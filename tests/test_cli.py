"""The command itself: help, version, exit codes; the verbs are tested with their rooms."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from kaizen_dist import __version__
from kaizen_dist.cli import app

VERBS = [
    "prepare",
    "extend",
    "verify",
    "inspect",
    "train",
    "sweep",
    "report",
    "eval",
    "export",
    "predict",
    "bench loader",
    "doctor",
    "status",
    "logs",
    "demo",
]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb):
    done = CliRunner().invoke(app, [*verb.split(), "--help"])
    assert done.exit_code == 0
    assert f"kaizen-dist {verb}" in done.stdout


def test_help_answers_without_torch():
    code = "import sys, kaizen_dist.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version():
    assert __version__ in CliRunner().invoke(app, ["--version"]).stdout


@pytest.mark.cold
def test_an_expected_error_has_its_code_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kaizen_dist", "verify", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "there is no stream" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_options_are_usage_errors():
    assert CliRunner().invoke(app, ["train", "--nonsense"]).exit_code == 2
