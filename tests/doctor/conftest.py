"""What the doctor's tests share: programs that are not what they seem."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def program(tmp_path, monkeypatch):
    """`program(name, script)`: from now on the first on PATH by that name."""
    folder = tmp_path / "bin"

    def make(name: str, script: str) -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return path

    return make


@pytest.fixture
def only():
    """`only(findings, name)`: the one finding of that name."""

    def pick(findings, name):
        (found,) = [finding for finding in findings if finding.name == name]
        return found

    return pick
