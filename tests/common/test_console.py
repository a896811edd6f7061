"""Text of others is shown and not obeyed, and no output fails for its characters."""

import io
import os
import subprocess
import sys

import pytest
from rich.table import Table

from kaizen_dist.common.console import PlainConsole, one_line, printable

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
