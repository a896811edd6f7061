"""Text of others is shown and not obeyed, and no output fails for its characters."""

import io
import os
import subprocess
import sys
import time

import pytest
from rich.table import Table

from kaizen_dist.common.console import (
    PlainConsole,
    ProgressBar,
    ProgressBars,
    one_line,
    printable,
)

HOSTILE = "[/] [bold]x[/bold] :smile: \x1b[31mred \x9b0m \x1b]0;title\x07 \ud800 \u202etxt.exe"


def test_control_characters_and_halves_are_escapes():
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("\x1b[0m\r\x00\x7f\x9b") == "\\x1b[0m\\x0d\\x00\\x7f\\x9b"
    assert printable("\ud800 \u202e") == "\\ud800 \\u202e"
    assert printable("Käse 猫 😀") == "Käse 猫 😀"
    assert one_line("a\nb") == "a\\nb"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_takes_names_as_they_stand(terminal):
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=terminal, color_system=None, width=200)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE)
    shown = out.getvalue()
    assert shown.count("[/] [bold]x[/bold] :smile: \\x1b[31mred") == 4
    assert not set(shown) & {"\x07", "\x9b", "\ud800", "\u202e"}
    assert "\x1b[31m" not in shown
    shown.encode()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_no_encoding_fails(encoding):
    code = (
        "from kaizen_dist.common.console import PlainConsole, forgive_encoding, say\n"
        "from rich.table import Table\n"
        "forgive_encoding()\n"
        "table = Table('a − b ± 猫'); table.add_row('😀')\n"
        "PlainConsole().print(table, '−')\n"
        "print('−'); say('猫 \\ud800')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"\\ud800" in done.stderr


def test_messages_go_through_logging_and_a_program_may_configure_them():
    code = (
        "import logging, sys\n"
        "from kaizen_dist.common.console import say, warn\n"
        "say('100 % \\x1b[0m'); warn('no \\n'); say('a result', error=False)\n"
        "logger = logging.getLogger('kaizen_dist')\n"
        "logger.handlers = [logging.StreamHandler(sys.stdout)]\n"
        "logger.setLevel('WARNING')\n"
        "say('quiet'); warn('loud')\n"
    )
    for rank in (None, "2"):
        environment = {k: v for k, v in os.environ.items() if k != "RANK"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | ({"RANK": rank} if rank else {}),
            capture_output=True,
            text=True,
            check=True,
        )
        who = f"rank {rank}: " if rank else ""
        assert done.stderr == f"{who}100 % \\x1b[0m\nWARNING: {who}no \n\n"
        assert done.stdout == "a result\nloud\n"


@pytest.mark.parametrize(
    ("total", "before", "line"),
    [
        (2000, 500, "reading: 1,500 of 2,000 images, 100 images/s, ETA 5 s  loss 0.5\n"),
        (None, 0, "reading: 1,000 images, 100 images/s\n"),
    ],
)
def test_progress_elsewhere_than_on_a_terminal_is_a_line_every_ten_seconds(
    monkeypatch, capsys, total, before, line
):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    noted = "loss" in line
    with ProgressBar("reading", total, done=before) as bar:
        clock[0] = 9.0
        bar.advance(900)
        assert capsys.readouterr().err == ""
        clock[0] = 10.0
        bar.advance(100, "loss 0.5" * noted)
        assert capsys.readouterr().err == line
        assert bar.done == before + 1000
    with ProgressBar("reading", total, shown=False) as bar:
        clock[0] = 60.0
        bar.advance(1)
    assert capsys.readouterr().err == line


def test_one_progress_bar_follows_another(monkeypatch, capsys):
    """Each with its own rate, from where it began; a run shows its loss beside it."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with ProgressBars() as bars:
        bars.show("task 1/2", 20, 40, "loss 0.5", "steps")
        clock[0] = 10.0
        bars.show("task 1/2", 30, 40, "loss 0.25", "steps")
        bars.show("evaluate\x1b", 0, 8)
        clock[0] = 20.0
        bars.show("evaluate\x1b", 5, 8)
    training = "task 1/2: 30 of 40 steps, 1 steps/s, ETA 10 s  loss 0.25"
    evaluation = "evaluate\\x1b: 5 of 8 images, 0 images/s, ETA 6 s"
    # A bar that has printed a line prints one more when it ends.
    assert capsys.readouterr().err.splitlines() == [training, training, evaluation, evaluation]
