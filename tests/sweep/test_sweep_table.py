"""Mean and deviation over seeds, by hand."""

from math import sqrt

import pytest

from kaizen_dist.evaluation.metrics import spread
from kaizen_dist.sweep.table import MEASURED, VariantRow, markdown


def shown_in_table(values):
    figures = dict.fromkeys(MEASURED) | {"final_accuracy": spread(values)}
    row = VariantRow("a", {}, len(values), len(values), figures)
    return markdown([], [row]).splitlines()[-1].split(" | ")[-1].rstrip(" |")


def test_the_spread_over_seeds_by_hand():
    found = spread([0.2, None, 0.4, 0.9])
    assert found.mean == pytest.approx(0.5)
    assert found.deviation == pytest.approx(sqrt((0.09 + 0.01 + 0.16) / 2))
    assert found.count == 3
    assert shown_in_table([0.2, None, 0.4, 0.9]) == "0.500 ± 0.361"
    assert shown_in_table([0.25]) == "0.250"
    assert spread([None]) is None


def test_the_table_has_what_was_measured_and_no_more():
    nothing = dict.fromkeys(MEASURED)
    rows = [
        VariantRow(
            "a | b", {"variant": "a | b"}, 2, 2, {**nothing, "forgetting": spread([0.1, 0.3])}
        ),
        VariantRow("c", {"variant": "c"}, 2, 0, nothing),
    ]
    assert markdown(["variant"], rows) == (
        "| variant | seeds | F |\n| --- | ---: | ---: |\n"
        "| a \\| b | 2 | 0.200 ± 0.141 |\n| c | 0 | – |\n"
    )
    assert rows[0].columns()["forgetting_std"] == pytest.approx(sqrt(0.02))
