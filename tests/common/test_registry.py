"""Parts by name: ours, of an installed package, by module:Class; and who may name code."""

import re
import sys
from pathlib import Path

import pytest

import kaizen_dist
from kaizen_dist.common import registry
from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.registry import Registry, trust
from kaizen_dist.training.loggers import LOGGERS
from kaizen_dist.training.loggers.base import Logger

CODE = """
from kaizen_dist.training.loggers.base import Logger

class Mine(Logger):
    pass

class Other:
    pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """A module of somebody else on Python's path, not imported yet."""
    name = f"somebody_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_trusted", set())
    yield name
    sys.modules.pop(name, None)


def test_ours_are_known_by_the_names_of_their_files():
    assert LOGGERS.ours() == ["mlflow", "tensorboard", "wandb"]
    assert LOGGERS.find("tensorboard").__name__ == "TensorBoard"
    assert Registry("k", "no.such.group", Logger).ours() == []


def test_an_unknown_name_is_told_with_the_nearest_and_the_cure():
    with pytest.raises(UsageError) as caught:
        LOGGERS.find("tensorbord", ["another"])
    for expected in ("log.to: 'tensorbord'", "did you mean tensorboard?", "mlflow", "module:Class"):
        assert expected in str(caught.value)


def test_a_class_that_the_user_names_is_imported(module):
    trust([f"{module}:Mine", None, 3])
    assert LOGGERS.find(f"{module}:Mine").__module__ == module


def test_what_only_a_stored_file_names_is_not_imported(module, monkeypatch):
    with pytest.raises(UsageError, match=r"KAIZEN_DIST_TRUST=somebody"):
        LOGGERS.find(f"{module}:Mine")
    assert module not in sys.modules
    monkeypatch.setenv("KAIZEN_DIST_TRUST", f"other,{module}")
    assert LOGGERS.find(f"{module}:Mine")
    monkeypatch.delenv("KAIZEN_DIST_TRUST")
    assert LOGGERS.find(f"{module}:Mine"), "who has imported a module trusts it"


@pytest.mark.parametrize(
    ("code", "attribute", "reason"),
    [
        ("import no_such_module_here", "Mine", "No module named 'no_such_module_here'"),
        ("1 / 0", "Mine", "ZeroDivisionError"),
        (CODE, "Absent", "has no attribute 'Absent'"),
        (CODE, "Other", r"no subclass of kaizen_dist\.training\.loggers\.base\.Logger"),
        (CODE, "", "cannot be imported"),
    ],
)
def test_code_that_does_not_fit_says_why(module, tmp_path, code, attribute, reason):
    (tmp_path / f"{module}.py").write_text(code)
    trust([f"{module}:{attribute}"])
    with pytest.raises(UsageError, match=rf"log\.to: '{module}:{attribute}'.*{reason}"):
        LOGGERS.find(f"{module}:{attribute}")


def test_an_installed_package_offers_its_parts_by_entry_points(module, tmp_path):
    about = tmp_path / "somebody-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[kaizen_dist.loggers]\nmine = {module}:Mine\n")
    assert LOGGERS.find("mine").__module__ == module
    with pytest.raises(UsageError, match="did you mean mine"):
        LOGGERS.find("min")


def test_every_configuration_of_a_run_folder_is_read_as_stored():
    """Otherwise a stranger's run could name modules to be imported."""
    calls = [
        call
        for path in Path(kaizen_dist.__file__).parent.rglob("*.py")
        for call in re.findall(r"\bload\([^()]*\bCONFIG\b[^()]*\)", path.read_text())
    ]
    assert len(calls) >= 5
    assert [call for call in calls if "stored=True" not in call] == []
