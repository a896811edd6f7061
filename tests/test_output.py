"""Output that cannot be written as it is: another encoding, a reader that has gone, a full disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cold
KAIZEN = [sys.executable, "-m", "kaizen_dist"]
UNBUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"])


def environment(**given: str) -> dict[str, str]:
    return {k: v for k, v in (os.environ | given).items() if v}


@UNBUFFERED
@pytest.mark.parametrize("asked", [["--version"], ["--help"], ["inspect", "--help"]])
def test_a_reader_that_has_gone_is_no_error_to_speak_of(asked, unbuffered):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody:
        done = subprocess.run(
            [*KAIZEN, *asked],
            stdout=nobody,
            stderr=subprocess.PIPE,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


@UNBUFFERED
def test_errors_keep_their_code_where_nobody_reads_them(tmp_path, unbuffered):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody:
        asked = [*KAIZEN, "verify", str(tmp_path)]
        env = environment(PYTHONUNBUFFERED=unbuffered)
        assert subprocess.run(asked, stderr=nobody, env=env, check=False).returncode == 3


@UNBUFFERED
def test_a_full_disk_under_the_output_is_named(unbuffered):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*KAIZEN, "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            check=False,
        )
    assert done.returncode == 4
    assert done.stderr == b"error: cannot write the output: No space left on device\n"


def test_a_broken_pipe_of_something_else_is_not_taken_for_the_output():
    code = (
        "from kaizen_dist import cli\nfrom kaizen_dist.runs import checks\n"
        "def broken(*_): raise BrokenPipeError(32, 'a peer went away')\n"
        "checks.own_config = broken\n"
        "import sys; sys.argv = ['kaizen-dist', 'resume', 'x']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"a peer went away" in done.stderr


def test_closed_descriptors():
    shell = 'exec "$@" >&-'
    done = subprocess.run(["sh", "-c", shell, "sh", *KAIZEN, "--version"], check=False)
    assert done.returncode == 0


def test_an_error_shows_names_as_they_are(tmp_path):
    name = "[/] \x1b[31mred \udcff"
    env = environment(PYTHONIOENCODING="latin-1")
    done = subprocess.run(
        [*KAIZEN, "verify", str(tmp_path / name)], capture_output=True, env=env, check=False
    )
    assert done.returncode == 3
    assert b"\x1b" not in done.stderr
    assert b"[/] \\x1b[31mred \\udcff" in done.stderr
    assert b"Traceback" not in done.stderr
