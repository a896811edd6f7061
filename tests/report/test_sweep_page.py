"""The page of a sweep: means and spreads as they should be, figures as files, legible anywhere."""

import csv
import io
import math
import re
from statistics import fmean, stdev

import pytest
from PIL import Image
from test_browser import BROWSER, faults_of

from kaizen_dist.evaluation.metrics import Spread, spread
from kaizen_dist.report.charts import looks, svg
from kaizen_dist.report.groups import (
    Group,
    accuracy_plot,
    metric_plots,
    shown,
)
from kaizen_dist.report.plots import Plot, Series, line_chart
from kaizen_dist.report.sweep_page import RunRow, write_sweep_report
from kaizen_dist.runs.reader import load_run

FRACTIONS = (0, 0.01, 0.1)


@pytest.fixture
def replay_sweep(make_run):
    """Two lines over three fractions, three seeds each."""
    return [
        Group(
            f"{variant}, replay.fraction={fraction}",
            {"variant": variant, "replay.fraction": fraction},
            tuple(
                load_run(
                    make_run(f"{variant}-{fraction}-{seed}", keeps=keeps + fraction, seed=seed)
                )
                for seed in (1, 2, 3)
            ),
        )
        for variant, keeps in (("kaizen", 0.8), ("cassle", 0.6))
        for fraction in FRACTIONS
    ]


@pytest.fixture
def ablation(make_run):
    """Four variants with long names, one of them on another number of tasks, one without a run."""
    names = ["kaizen", "without distillation of the features", "joint <b>training</b>", "none"]
    tasks = {"joint <b>training</b>": 1}
    return [
        Group(
            name,
            {"variant": name},
            tuple(
                load_run(
                    make_run(f"{i}-{seed}", seed=seed, tasks=tasks.get(name, 5), keeps=0.9 - i / 5)
                )
                for seed in range(0 if name == "none" else 2)
            ),
        )
        for i, name in enumerate(names)
    ]


def rows_of(groups):
    return [
        *[RunRow(run.name, "finished", "50.0 %") for group in groups for run in group.runs],
        RunRow("none/seed-1", "failed", "exit 1: error: the loss is nan <script>"),
    ]


def test_the_spread_is_that_of_a_sample():
    assert spread([0.1, 0.2, 0.6, None]) == Spread(
        pytest.approx(0.3), pytest.approx(math.sqrt(0.07)), 3
    )
    assert spread([0.5]) == Spread(0.5, None, 1)
    assert spread([None]) is None
    assert shown([0.1, 0.3]) == "20.0\u00a0±\u00a014.1\u202f%"
    assert shown([0.25]) == "25.0\u202f%"
    assert shown([None]) == "–"


def test_a_metric_is_drawn_against_the_numbers_that_were_varied(replay_sweep):
    plots = {plot.name: plot for plot in metric_plots(replay_sweep)}
    plot = plots["final_accuracy_over_replay.fraction"]
    assert plot.kind == "lines"
    assert plot.places == ("0", "0.01", "0.1")
    assert [series.name for series in plot.series] == ["kaizen", "cassle"]
    cassle = [run.results.final_accuracy for run in replay_sweep[5].runs]
    assert plot.series[1].values[2].mean == pytest.approx(fmean(cassle))
    assert plot.series[1].values[2].deviation == pytest.approx(stdev(cassle))
    assert plots["forgetting_over_replay.fraction"].unit == "points"


def test_names_are_drawn_as_bars(ablation):
    plots = {plot.name: plot for plot in metric_plots(ablation[:3])}
    assert plots["final_accuracy"].kind == "bars"
    assert plots["final_accuracy"].places == tuple(group.name for group in ablation[:3])


def test_the_ceiling_is_a_level_that_the_others_are_held_to(ablation, tmp_path):
    """A stream of one task beside streams of five: one value, wherever the others stand."""
    course = accuracy_plot(ablation[:3])
    kaizen, _, joint = course.series
    assert (kaizen.level, joint.level) == (False, True)
    reached = fmean(run.results.final_accuracy for run in ablation[2].runs)
    assert [found.mean for found in joint.values] == [pytest.approx(reached)] * 5
    assert kaizen.values[0] != kaizen.values[4]
    assert "as one task" in course.note
    alone = accuracy_plot(ablation[2:3])
    assert [(s.level, len(s.values)) for s in alone.series] == [(False, 1)]
    text = write_sweep_report(tmp_path / "out", "t", ablation, rows_of(ablation)).read_text()
    assert 'stroke-dasharray="7 5"' in text, "in the legend"
    assert text.count("stroke-dasharray: 7,5") == 2, "in the wide and in the narrow chart"
    assert text.count("training&lt;/b&gt;, task") == 0, "no dots where nothing was measured"


def test_every_figure_lies_beside_the_page(replay_sweep, tmp_path):
    page = write_sweep_report(tmp_path / "out", "Replay", replay_sweep, rows_of(replay_sweep))
    text = page.read_text()
    linked = re.findall(r'href="(figures/[^"]+)"', text)
    assert len(linked) == 2 * (6 + 1 + 6)
    for name in linked:
        file = page.parent / name
        if file.suffix == ".png":
            assert Image.open(file).size == (1024, 640)
    numbers = csv.DictReader(
        io.StringIO((page.parent / "figures/final_accuracy_over_replay.fraction.csv").read_text())
    )
    first = next(numbers)
    accuracies = [run.results.final_accuracy for run in replay_sweep[0].runs]
    assert (first["series"], first["replay.fraction"], first["runs"]) == ("kaizen", "0", "3")
    assert float(first["mean"]) == pytest.approx(fmean(accuracies))
    assert float(first["std"]) == pytest.approx(stdev(accuracies))
    # Nothing is fetched: no source but the page itself.
    assert not re.search(r"(src=|@import|url\((?!#)|<script)", text)


def test_names_and_errors_are_escaped(ablation, tmp_path):
    text = write_sweep_report(tmp_path / "out", "A <i>", ablation, rows_of(ablation)).read_text()
    assert "<b>training" not in text
    assert "<script" not in text
    assert "joint &lt;b&gt;training" in text
    assert "the loss is nan &lt;script&gt;" in text
    assert "5 of" not in text
    assert "6 of 7 runs finished, 1 failed." in text


def test_every_column_is_explained_and_nothing_else(replay_sweep, tmp_path):
    text = write_sweep_report(tmp_path / "out", "Replay", replay_sweep, []).read_text()
    columns = re.findall(r'<th scope="col" class="n"><abbr[^>]*>(\w+)</abbr>', text)
    assert columns[:3] == ["FA", "CA", "F"]
    assert "kNN" in columns
    assert "NCM" not in columns, "these runs have none"
    assert re.findall(r"<dt>(\w+)</dt>", text) == columns


@pytest.mark.skipif(BROWSER is None, reason="no browser installed")
def test_both_kinds_of_page_are_legible_at_any_width(replay_sweep, ablation, tmp_path):
    for name, groups in (("lines", replay_sweep), ("bars", ablation)):
        page = write_sweep_report(tmp_path / name, name, groups, rows_of(groups))
        assert faults_of(page.read_text(), tmp_path) == []


def test_a_sweep_without_a_finished_run_still_says_what_failed(tmp_path):
    groups = [Group("a", {"variant": "a"}, ())]
    rows = [RunRow("a/seed-1", "failed", "exit 2: no")]
    text = write_sweep_report(tmp_path / "out", "t", groups, rows).read_text()
    assert "0 of 1 run finished, 1 failed." in text
    assert "exit 2: no" in text


@pytest.mark.parametrize("unit", ["%", "points"])
def test_no_axis_goes_beyond_what_can_be(unit):
    """Neither an accuracy nor what is lost of one is above one, wide as its spread may be."""
    spreads = tuple(Spread(m, s, 3) for m, s in ((0.97, 0.02), (0.99, 0.06), (0.98, 0.01)))
    plot = Plot(
        "f", "F", "", "lines", "tasks", ("2", "5", "10"), (Series("kaizen", spreads),), unit
    )
    drawn = svg(line_chart(plot, looks(["kaizen"])), "f", 480)
    ticks = re.findall(r"text-anchor: end[^>]*>(\d+)", drawn)
    assert max(map(int, ticks)) == 100
