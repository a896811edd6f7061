"""The folder of a run that comes from somebody else: read as far as it is one, else refused by
name; never a traceback, a wait, a write elsewhere, or what lies elsewhere in the page."""

import json
import math
import os

import pytest
import yaml
from fuzzing import CASES, VALUES, mutations, survive
from test_page import KNOWN, Page

from kaizen_dist.common.errors import DataError, KaizenError, WriteError
from kaizen_dist.config import flatten
from kaizen_dist.report.page import write_report
from kaizen_dist.report.table import markdown_table, summary_table
from kaizen_dist.runs.reader import load_run

FILES = ("config.yaml", "results.json", "events.jsonl")
COUNTS = pytest.mark.parametrize(
    "count", [20, pytest.param(CASES, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)


def reported(folder, others=()):
    """The run as it is read, once it has been through every output."""
    run = load_run(folder)
    page = Page(write_report([folder, *others], folder.with_suffix(".html")))
    # What is no text of a name is ours: known elements, and numbers that can be drawn.
    assert {e["tag"] for e in page.elements} <= KNOWN
    assert not [e for e in page.elements if any(name.startswith("on") for name in e)]
    drawn = "".join(e.get("d", "") + e.get("style", "") for e in page.elements)
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert not set(page.html) & {"\x1b", "\x07", "\0", "\u202e"}
    lines = markdown_table([run]).splitlines()
    assert len(lines) == 3
    summary_table([run])
    return run


@COUNTS
@pytest.mark.parametrize("compared", [False, True])
def test_damaged_results_are_refused_or_mean_what_they_say(make_run, count, compared):
    """Every value that the document has is the report's, and it has no others."""
    folder, others = make_run(rows_per_task=2), [make_run("other")] if compared else []
    path = folder / "results.json"
    accepted = 0
    for what, data in mutations(path.read_bytes(), count, seed=compared):
        path.write_bytes(data)
        run = survive(lambda: reported(folder, others))
        if isinstance(run, KaizenError):
            assert str(folder) in str(run), what
            continue
        accepted += 1
        said, has = json.loads(data), json.loads(run.results.model_dump_json())
        assert {key: has[key] for key in said if key != "linear"} == {
            key: value for key, value in said.items() if key != "linear"
        }, what
        fractions = [v for row in run.results.accuracy for v in row if v is not None]
        assert all(0 <= v <= 1 for v in fractions), what
    assert 0 < accepted < count


@COUNTS
def test_damaged_events_are_refused_or_mean_what_they_say(make_run, count):
    """Each row of the file is one of the run's, the last of those of the same step; a last line
    that is cut short is left out."""
    folder = make_run(rows_per_task=4)
    path = folder / "events.jsonl"
    accepted = 0
    for what, data in mutations(path.read_bytes(), count):
        path.write_bytes(data)
        run = survive(lambda: reported(folder))
        if isinstance(run, KaizenError):
            assert str(path) in str(run), what
            continue
        accepted += 1
        rows = {}
        for line in data.splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                assert line.startswith(b"{"), what
                assert not line.endswith(b"\n"), what
                continue
            rows[row["task"], row["step"]] = row
        found = list(zip(run.events.task.tolist(), run.events.step.tolist(), strict=True))
        assert found == sorted(rows), what
        for name, values in run.events.columns.items():
            said = [v if (v := rows[key].get(name)) is None else float(v) for key in found]
            assert [None if math.isnan(v) else v for v in values.tolist()] == said, what
    assert 0 < accepted < count


@COUNTS
def test_a_damaged_configuration_is_refused_or_means_what_it_says(make_run, count):
    """What is shown is the file as it stands, and its values are those YAML has there."""
    folder = make_run(rows_per_task=2)
    path = folder / "config.yaml"
    accepted = 0
    for what, data in mutations(path.read_bytes(), count):
        path.write_bytes(data)
        run = survive(lambda: reported(folder))
        if isinstance(run, KaizenError):
            assert str(path) in str(run), what
            continue
        accepted += 1
        assert run.config_text.encode() == data, what
        assert list(flatten(run.config)) == list(flatten(yaml.safe_load(data))), what
    assert 0 < accepted < count


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verb", ["page", "markdown"])
def test_what_is_no_regular_file_of_the_run_is_refused_by_name(make_run, tmp_path, name, verb):
    secret = tmp_path / "secret"
    secret.write_text("password: 1\n")
    for lay in (
        lambda p: os.mkfifo(p),
        lambda p: p.symlink_to("/dev/zero"),
        lambda p: p.symlink_to(secret),
        lambda p: p.symlink_to(tmp_path / "nothing"),
        lambda p: p.mkdir(),
    ):
        folder = make_run(f"run{len(list(tmp_path.iterdir()))}", rows_per_task=1)
        (folder / name).unlink()
        lay(folder / name)
        read = survive(lambda f=folder: load_run(f) if verb == "markdown" else reported(f))
        assert isinstance(read, DataError)
        assert str(folder / name) in str(read)


def test_one_damaged_run_among_several_is_named(make_run):
    whole, damaged = make_run("whole", rows_per_task=1), make_run("damaged", rows_per_task=1)
    (damaged / "results.json").write_text("{}")
    with pytest.raises(DataError, match=r"damaged/results\.json: malformed"):
        write_report([whole, damaged], whole / "page.html")
    assert not (whole / "page.html").exists()


def test_the_page_is_written_nowhere_else(make_run, tmp_path):
    folder = make_run(rows_per_task=1)
    other = tmp_path / "other"
    other.mkdir()
    (folder / "report.html").symlink_to(other)
    with pytest.raises(WriteError, match=r"report\.html: it is a folder"):
        write_report([folder])
    assert list(other.iterdir()) == []
    (folder / "report.html").unlink()
    target = tmp_path / "target"
    target.write_text("mine")
    (folder / "report.html").symlink_to(target)
    write_report([folder])
    assert target.read_text() == "mine"
    assert not (folder / "report.html").is_symlink()


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"loss": float("nan")}, "loss"),
        ({"lr": float("inf")}, "lr"),
        ({"data_wait": 1.5}, "data_wait"),
        ({"images_per_second": -1.0}, "images_per_second"),
        ({"step": 2**62}, "step"),
        ({"task": 7}, "task 7"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(make_run, row, field):
    folder = make_run(rows_per_task=2)
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | row)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"events\.jsonl, line 4: [^$]*{field}"):
        load_run(folder)


def test_a_line_without_end_takes_no_memory(make_run):
    folder = make_run(rows_per_task=2)
    with (folder / "events.jsonl").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"events\.jsonl, line 11: malformed"):
        load_run(folder)


def test_names_that_no_encoding_has_and_that_turn_the_writing(make_run):
    name = "run\udcff \u202e[b]\n|x"
    folder = make_run(name, rows_per_task=1, classes=["\u202eturned", "\x1b[31m", *"abcdefgh"])
    page = write_report([folder]).read_text(encoding="utf-8")
    assert "run\\udcff \\u202e[b]\\n|x" in page
    assert "\\u202eturned" in page
    assert "\\x1b[31m" in page
    assert not set(page) & {"\u202e", "\x1b"}
    table = markdown_table([load_run(folder)])
    assert table.count("\n") == 3
    assert table.encode()
    assert "\\u202e" in table


def test_every_hostile_value_as_a_name(make_run):
    for number, value in enumerate(v for v in VALUES if isinstance(v, str) and v != "\ud800"):
        classes = [value, *"abcdefghi"]
        folder = make_run(f"run{number}", rows_per_task=1, classes=classes, method=value)
        assert load_run(folder).results.task_classes[0][0] == value
        survive(lambda f=folder: reported(f))
