"""The table of the four metrics, on a terminal and in Markdown."""

from io import StringIO

from rich.console import Console

from kaizen_dist.report.table import markdown_table, summary_table
from kaizen_dist.runs.reader import load_run

VALUES = {
    "final_accuracy": 0.31251,
    "continual_accuracy": 0.481,
    "forgetting": -0.0124,
    "forward_transfer": None,
}


def printed(table, width=100):
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_fractions_with_three_decimals_and_a_dash_for_none(make_run):
    text = printed(summary_table([load_run(make_run("kaizen", **VALUES))]))
    row = next(line for line in text.splitlines() if "kaizen" in line)
    cells = row.replace("│", " ").split()
    assert cells == ["kaizen", "byol", "5", "0.313", "0.481", "−0.012", "–"]
    for name in ("FA", "CA", "F", "FT"):
        assert name in text


def test_an_unfinished_run_says_how_far_it_is(make_run):
    assert "2 of 5" in printed(summary_table([load_run(make_run(done=2))]))


def test_a_name_is_no_markup(make_run):
    run = load_run(make_run("[red]x[bold]"))
    assert "[red]x[bold]" in printed(summary_table([run]))


def test_markdown(make_run):
    runs = [load_run(make_run("kaizen", **VALUES)), load_run(make_run("a|b <i>*c*", done=1))]
    lines = markdown_table(runs).splitlines()
    assert lines[0] == "| run | method | tasks | FA | CA | F | FT |"
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| kaizen | byol | 5 | 0.313 | 0.481 | −0.012 | – |"
    assert lines[3].startswith(r"| a\|b \<i\>\*c\* | byol | 1 of 5 | 0.")
    assert len(lines) == 4
