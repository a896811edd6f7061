"""Curves, charts, heat maps and colours: places worked out by hand or known elsewhere."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from kaizen_dist.report import charts, palette
from kaizen_dist.report.charts import LABEL_GAP, Chart, Line, svg, y_ticks
from kaizen_dist.report.curves import BUCKETS, curve, step_axis, task_axis
from kaizen_dist.report.heatmap import heat_map
from kaizen_dist.runs.reader import load_run

NAN = math.nan


def chart(points, x=10.0, **settings):
    lines = [
        Line(f"line {i}", np.array(own, dtype=float).reshape(-1, 2)) for i, own in enumerate(points)
    ]
    return Chart("Loss", lines, (0.0, x), **settings)


def drawn(made, width=480):
    """The chart as it lies in a page: its elements."""
    return list(ElementTree.fromstring(svg(made, "loss", width)).iter())


def texts(elements, anchor):
    """(x, y, text) of those that are set like this."""
    return [
        (float(e.get("x")), float(e.get("y")), e.text)
        for e in elements
        if e.tag == "text" and f"text-anchor: {anchor}" in e.get("style")
    ]


@pytest.mark.parametrize(
    ("low", "high", "height", "ticks"),
    [
        (0, 1, 220, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.68, 220, [0, 0.2, 0.4, 0.6, 0.8]),
        (1.3, 8.7, 220, [0, 2, 4, 6, 8, 10]),
        (-0.9, 0.4, 130, [-1, -0.5, 0, 0.5]),
        (412, 412, 130, [350, 400, 450, 500]),
        (0, 0, 130, [0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, height, ticks):
    made = y_ticks(chart([[(0.0, low), (1.0, high)]], height=height))
    assert made[0] <= low
    assert made[-1] >= high
    assert made == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("steps", "width", "shown"),
    [(1.0, 480, ["0", "1"]), (2950.0, 1016, ["0", "500", "1k", "1.5k", "2k", "2.5k"])],
)
def test_step_ticks_are_whole(steps, width, shown):
    made = drawn(chart([[(0.0, 0.0), (steps, 1.0)]], x=steps), width)
    assert [text for *_, text in texts(made, "middle")] == shown


def test_a_line_goes_where_its_values_are():
    elements = drawn(chart([[(0.0, 0.0), (5.0, 1.0), (10.0, 0.5)]]))
    assert elements[0].get("viewBox") == "0 0 480 262"
    # 46 px to the left of the plot, 10 to the right; 8 above, 34 below.
    (line,) = [
        e
        for e in elements
        if e.tag == "path" and "var(--c0)" in e.get("style", "") and e.get("d").count("L") == 2
    ]
    assert numbers(line.get("d")) == pytest.approx([46, 228, 258, 8, 470, 118])
    ticks = texts(elements, "end")
    assert [text for *_, text in ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert np.diff([y for _, y, _ in ticks]) == pytest.approx([-44] * 5)


def numbers(path):
    return [float(number) for number in re.findall(r"-?[\d.]+", path)]


def test_a_value_that_is_missing_breaks_the_line_and_a_lone_one_is_a_dot():
    elements = drawn(chart([[(0.0, 0.0), (1.0, 1.0), (2.0, NAN), (5.0, 1.0), (6.0, NAN)]]))
    (line,) = [
        e for e in elements if "stroke: var(--c0)" in e.get("style", "") and "clip-path" in e.attrib
    ]
    assert line.get("d").split()[::3] == ["M", "L", "M"]
    assert numbers(line.get("d"))[:4] == pytest.approx([46, 228, 88.4, 8])
    dots = [(float(e.get("x")), float(e.get("y"))) for e in elements if e.tag == "use"]
    assert dots == [(pytest.approx(258), pytest.approx(8))]


def test_nothing_to_show_is_no_chart():
    assert chart([[]]).empty
    assert chart([[(0.0, NAN)]]).empty
    assert not chart([[(0.0, 0.0)]]).empty


def test_labels_at_the_ends_do_not_touch_and_stay_inside():
    ends = [[(0.0, 0.5), (10.0, y)] for y in (0.0, 0.01, 0.02, 0.9, 1.0)]
    elements = drawn(chart(ends, height=200, label_ends=True))
    labels = [label for label in texts(elements, "start") if label[2].startswith("line")]
    assert [text for *_, text in labels] == [f"line {i}" for i in range(5)]
    places = [y for _, y, _ in labels]
    assert all(a - b >= LABEL_GAP - 0.05 for a, b in pairwise(places))
    middle = 3.4  # from a line of text's foot to its middle, px
    assert min(places) - middle == pytest.approx(8, abs=0.1)
    assert max(places) - middle == pytest.approx(208, abs=0.1)


def test_task_numbers_are_thinned_where_they_are_crowded():
    bands = [(0.5 * t, 0.5 * t + 0.5) for t in range(20)]
    elements = drawn(chart([[(0.0, 0.0), (10.0, 1.0)]], bands=bands, x_ticks=()))
    assert [text for *_, text in texts(elements, "middle")] == [str(t) for t in range(1, 20, 2)]
    upright = [numbers(e.get("d")) for e in elements if "var(--faint)" in e.get("style", "")]
    between = [d[0] for d in upright if d[0] == d[2]]
    assert between == pytest.approx([46 + 21.2 * t for t in range(1, 20)])


def test_per_cent_axis():
    made = chart([[(0.0, 0.0), (10.0, 0.4)]], unit="%", x_ticks=[(5, "5")], y_range=(0.0, 0.4))
    elements = drawn(made)
    assert [text for *_, text in texts(elements, "end")] == ["0", "10", "20", "30", "40\u202f%"]
    assert [(x, text) for x, _, text in texts(elements, "middle")] == [(pytest.approx(258), "5")]


def test_a_chart_is_the_same_every_time_and_every_id_is_its_own():
    made = chart([[(0.0, 0.0), (5.0, 1.0), (6.0, NAN), (7.0, 1.0)]], label_ends=True)
    assert svg(made, "a", 480) == svg(made, "a", 480)
    ids = [
        e.get("id") for name in "ab" for e in ElementTree.fromstring(svg(made, name, 480)).iter()
    ]
    used = [one for one in ids if one]
    assert len(used) == len(set(used)) > 4


def test_colours_are_those_of_the_style_sheet(style):
    day = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", style.split("@media")[0]))
    night = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", style.split("@media")[1]))
    for colour, variable in palette.VARIABLES.items():
        assert day[variable] == colour
        assert night[variable] != colour
    styles = [e.get("style", "") for e in drawn(chart([[(0.0, 0.0), (10.0, 1.0)]]))]
    assert not re.search("#(?!000000)[0-9a-f]{6}", " ".join(styles)), "no colour but by its name"


@pytest.fixture
def style():
    return (Path(charts.__file__).with_name("templates") / "style.css").read_text()


@pytest.mark.parametrize("value", [1e40, -1e40, 1e-30])
def test_numbers_far_out_can_be_drawn(value):
    for made in (chart([[(0.0, 0.0), (10.0, value)]]), chart([[(0.0, value), (10.0, value)]])):
        assert not re.search("nan|inf", svg(made, "far", 480))


def test_axes_of_steps_and_of_tasks(make_run):
    events = load_run(make_run(tasks=2, rows_per_task=3)).events  # steps 0, 10, 20 twice
    x, bands = step_axis(events)
    assert x.tolist() == [0, 10, 20, 21, 31, 41]
    assert bands == [(0, 21), (21, 42)]
    expected = [0, 10 / 21, 20 / 21, 1, 1 + 10 / 21, 1 + 20 / 21]
    assert task_axis(events, finished=True).tolist() == pytest.approx(expected)


def test_a_task_still_going_is_as_long_as_the_one_before(make_run):
    events = load_run(make_run(tasks=2, done=1, rows_per_task=6)).events
    assert events.step.tolist() == [0, 10, 20, 30, 40, 50, 0, 10]
    assert task_axis(events, finished=False)[-1] == pytest.approx(1 + 10 / 51)
    assert task_axis(events, finished=True)[-1] == pytest.approx(1 + 10 / 11)


def test_long_runs_are_thinned_and_keep_their_spikes(make_run):
    folder = make_run(tasks=1, rows_per_task=5000)
    path = folder / "events.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3217]["loss"] = 99.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = load_run(folder).events
    smooth, raw = curve(events, "loss", step_axis(events)[0])
    gap = 1
    assert len(smooth) <= BUCKETS + gap
    assert len(raw) <= 2 * BUCKETS + gap
    assert np.nanmax(raw[:, 1]) == 99.0
    assert Line("loss", smooth, raw=raw).reach()[1] < 20  # one spike does not flatten the rest
    # The moving mean of a window is that of numpy, away from the ends.
    y = events.columns["loss"]
    window = 5000 // 20
    x, shown = smooth[BUCKETS // 2]
    centre = int(x) // 10
    mean = np.mean(y[centre - window // 2 : centre + window // 2 + 1])
    assert shown == pytest.approx(mean)


def test_a_term_that_is_off_in_a_task_has_no_course_there(make_run):
    events = load_run(make_run(tasks=2, rows_per_task=4)).events
    smooth, _ = curve(events, "kd_features", step_axis(events)[0])
    assert len(smooth) == 2 * 5  # four rows a task, and a gap
    assert np.isnan(smooth[:5, 1]).all()
    assert (smooth[5:9, 1] > 0).all()


def test_heat_map_margins_are_where_the_metrics_come_from():
    drawn = heat_map("R", [[0.8, None, None], [0.5, 0.9, None]], 3, ["cats", "dogs"])
    assert [[cell.text for cell in row] for row in drawn.rows] == [
        ["80", None, None],
        ["50", "90", None],
    ]
    assert [[cell.learnt for cell in row] for row in drawn.rows] == [
        [True, False, False],
        [False, True, False],
    ]
    assert drawn.rows[1][0].hint.replace("\u202f", " ") == "After task 2, on task 1: 50.0 %"
    assert drawn.rows[0][1].hint == "After task 1, on task 2: not measured"
    assert drawn.means == ["80", "70"]
    assert drawn.lost == ["30", "", ""]
    assert drawn.hints == ["cats", "dogs", ""]


def luminance(colour):
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a, b):
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    bright, dim = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_contrast_is_that_of_wcag():
    # Published values: black on white 21:1; #767676 is the lightest grey that passes AA on white.
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_every_cell_is_legible():
    for i in range(101):
        colours = dict(re.findall("--([a-z-]+):(#[0-9a-f]{6})(?:;|$)", palette.cell_style(i / 100)))
        assert len(colours) == 4
        assert contrast(colours["cell"], colours["text"]) >= 4.5
        assert contrast(colours["night-cell"], colours["night-text"]) >= 4.5


def oklab_lightness(colour):
    """From sRGB, by the forward matrices published with OKLab."""
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    rgb = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b)]
    lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    return float(np.dot([0.2104542553, 0.7936177850, -0.0040720468], np.cbrt(lms @ rgb)))


def test_equal_steps_of_accuracy_look_equal():
    for ramp, sign in ((palette.LIGHT, -1), (palette.DARK, 1)):
        lightness = [oklab_lightness(palette.ramp_colour(ramp, i / 20)) for i in range(21)]
        steps = sign * np.diff(lightness)
        assert steps.min() > 0
        assert steps.max() < 1.35 * steps.min()
