"""Versions: packages that are missing, too old or do not load, and the extra that brings one."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from kaizen_dist.doctor import versions
from kaizen_dist.doctor.report import Finding

LOOK = """
import json, sys
from dataclasses import asdict
{before}
from kaizen_dist.doctor.versions import versions
print(json.dumps([asdict(finding) for finding in versions()]))
"""
BLOCK = """
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "webdataset":
            raise ImportError("blocked for this test")
sys.meta_path.insert(0, Blocker())
"""


def look(tmp_path, requires, before=""):
    """The findings of a new process in which the package requires this."""
    folder = tmp_path / "kaizen_dist-9.dist-info"
    folder.mkdir()
    lines = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kaizen-dist\nVersion: 9\n{lines}"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(before=before)],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,  # the first place where packages are looked for; a checkout describes one
        capture_output=True,
        text=True,
        check=True,
    )
    return [Finding(**finding) for finding in json.loads(done.stdout)]


def test_missing_and_old_packages(tmp_path, only):
    found = look(
        tmp_path,
        [
            "numpy>=1.26",
            "pydantic>=99",
            "no-such-package>=1",
            'no-such-tool>=2; extra == "slurm"',
            'numpy>=99; extra == "onnx"',
            'no-such-decoder; extra == "dali-cuda13"',
            'rich>=13; extra == "dali-cuda12"',
        ],
    )
    assert only(found, "pydantic").state == "fail"
    assert ">=99 is needed" in only(found, "pydantic").value
    assert only(found, "no-such-package").state == "fail"
    assert "pip install 'no-such-package>=1'" in only(found, "no-such-package").cure
    assert "1 required" in only(found, "other packages").value
    # The extra is named, and missing it is no fault.
    assert only(found, "submitit").state == "ok"
    assert ".[slurm]" in only(found, "submitit").value
    assert only(found, "ONNX").state == "warn"
    assert only(found, "ONNX").cure == "pip install -e '.[onnx]'"
    # Either of the two will do.
    assert only(found, "DALI").state == "ok"


def test_without_dali_there_is_a_warning(tmp_path, only):
    found = look(tmp_path, ['no-such-decoder; extra == "dali-cuda13"'])
    assert only(found, "DALI").state == "warn"
    assert "dali-cuda13" in only(found, "DALI").cure


def test_a_package_that_does_not_load_fails(tmp_path, only):
    found = look(tmp_path, ["webdataset>=0.2"], BLOCK)
    assert only(found, "webdataset").state == "fail"
    assert "blocked for this test" in only(found, "webdataset").value


@pytest.mark.parametrize(
    ("version", "state"),
    [("2.10.0", "fail"), ("2.11.0", "ok"), ("2.14.1+cu130", "ok"), (None, "fail")],
)
def test_required_versions(version, state):
    assert versions.judge(Requirement("torch>=2.11"), version).state == state


def test_an_old_python_fails():
    assert versions.python("3.9.18").state == "fail"
    assert versions.python("3.10.0").state == "ok"


def test_extras_exist():
    """Every extra that a cure names is one of this package."""
    known = set(metadata.metadata("kaizen-dist").get_all("Provides-Extra"))
    assert {name for extra in versions.EXTRAS for name in extra.extras} <= known
