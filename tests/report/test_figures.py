"""Curves, charts, heat maps and colours: geometry worked out by hand or known elsewhere."""

import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest

from kaizen_dist.report import color
from kaizen_dist.report.curves import BUCKETS, Curve, curve, step_axis, task_axis
from kaizen_dist.report.figures import (
    LABEL_GAP,
    Label,
    Named,
    count_ticks,
    line_chart,
    nice_ticks,
)
from kaizen_dist.report.heatmap import heat_map
from kaizen_dist.runs.reader import load_run


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.68, 5, [0, 0.2, 0.4, 0.6, 0.8]),
        (1.3, 8.7, 5, [0, 2, 4, 6, 8, 10]),
        (-0.9, 0.4, 3, [-1, -0.5, 0, 0.5]),
        (412, 412, 3, [350, 400, 450, 500]),
        (0, 0, 3, [0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, most, ticks):
    made = nice_ticks(low, high, most)
    assert made[0] <= low
    assert made[-1] >= high
    assert made == pytest.approx(ticks)


def test_step_ticks_are_whole():
    assert [t.text for t in count_ticks(1.0)] == ["0", "1"]
    assert [t.text for t in count_ticks(2950, 7)] == ["0", "500", "1k", "1.5k", "2k", "2.5k"]


def chart(points, **settings):
    lines = [
        Named(f"line {i}", "c0", Curve([task] if task else [], [])) for i, task in enumerate(points)
    ]
    return line_chart("Loss", lines, (0.0, 10.0), **settings)


def test_a_line_goes_where_its_values_are():
    drawn = chart([[(0.0, 0.0), (5.0, 1.0), (10.0, 0.5)]])
    assert drawn.lines[0].path == "M0 1000L500 0 1000 500"
    assert [t.text for t in drawn.y_ticks] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [t.at for t in drawn.y_ticks] == [100, 80, 60, 40, 20, 0]


def test_a_value_that_is_missing_breaks_the_line_and_a_lone_one_is_a_dot():
    nan = float("nan")
    drawn = chart([[(0.0, 0.0), (1.0, 1.0), (2.0, nan), (5.0, 1.0), (6.0, nan)]])
    assert drawn.lines[0].path == "M0 1000L100 0"
    assert [(dot.x, dot.y) for dot in drawn.lines[0].dots] == [(500, 0)]


def test_nothing_to_show_is_no_chart():
    assert chart([[]]) is None
    assert chart([[(0.0, float("nan"))]]) is None


def test_labels_at_the_ends_do_not_touch_and_stay_inside():
    ends = [[(0.0, 0.5), (10.0, y)] for y in (0.0, 0.01, 0.02, 0.9, 1.0)]
    drawn = chart(ends, height=200, label_ends=True)
    places = [label.at * 2 for label, _ in drawn.ends]  # per cent of 200 px
    assert all(b - a >= LABEL_GAP - 0.05 for a, b in pairwise(places))
    assert places[0] >= 0
    assert places[-1] <= 200
    assert [label.text for label, _ in drawn.ends] == [f"line {i}" for i in (4, 3, 2, 1, 0)]


def test_task_numbers_are_thinned_where_they_are_crowded():
    bands = [(0.5 * t, 0.5 * t + 0.5) for t in range(20)]
    few = chart([[(0.0, 0.0), (10.0, 1.0)]], bands=bands)
    assert [label.text for label in few.band_labels] == [str(t) for t in range(1, 20, 2)]
    assert few.bands == [50 * t for t in range(1, 20)]


def test_per_cent_axis():
    drawn = chart(
        [[(0.0, 0.0), (10.0, 0.4)]], per_cent=True, x_ticks=[Label(5, "5")], y_range=(0.0, 0.4)
    )
    assert [t.text for t in drawn.y_ticks] == ["0", "10", "20", "30", "40\u202f%"]
    assert drawn.x_ticks == [Label(50, "5")]


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
    drawn = curve(events, "loss", step_axis(events)[0])
    assert len(drawn.smooth[0]) <= BUCKETS
    assert len(drawn.raw[0]) <= 2 * BUCKETS
    assert max(y for _, y in drawn.raw[0]) == 99.0
    assert drawn.range()[1] < 20  # one spike does not flatten the rest
    # The moving mean of a window is that of numpy, away from the ends.
    y = events.columns["loss"]
    window = 5000 // 20
    x, smooth = drawn.smooth[0][BUCKETS // 2]
    centre = int(x) // 10
    mean = np.mean(y[centre - window // 2 : centre + window // 2 + 1])
    assert smooth == pytest.approx(mean)


def test_a_term_that_is_off_in_a_task_has_no_course_there(make_run):
    events = load_run(make_run(tasks=2, rows_per_task=4)).events
    first, second = curve(events, "kd_features", step_axis(events)[0]).smooth
    assert all(math.isnan(y) for _, y in first)
    assert all(y > 0 for _, y in second)


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


def test_contrast_is_that_of_wcag():
    # Published values: black on white 21:1; #767676 is the lightest grey that passes AA on white.
    assert color.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert color.contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)
    assert color.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_every_cell_is_legible():
    for ramp in (color.LIGHT, color.DARK):
        for i in range(101):
            cell = ramp.at(i / 100)
            assert re.fullmatch("#[0-9a-f]{6}", cell)
            assert color.contrast(color.ink_on(cell), cell) >= color.LEGIBLE


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
    for ramp, sign in ((color.LIGHT, -1), (color.DARK, 1)):
        lightness = [oklab_lightness(ramp.at(i / 20)) for i in range(21)]
        steps = sign * np.diff(lightness)
        assert steps.min() > 0
        assert steps.max() < 1.35 * steps.min()
