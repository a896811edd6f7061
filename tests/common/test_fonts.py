"""Names in any script: a font that has them, or an escape; never a box, a formula or a warning."""

import warnings

import pytest

from kaizen_dist.common import fonts
from kaizen_dist.evaluation.metrics import Spread
from kaizen_dist.report.plots import Plot, Series, picture

usual = fonts._fonts()[fonts.USUAL]
NAMES = ("\u732b", "\u0e44\u0e17\u0e22", "$\\frac{a$", "a$b$", "two\nlines", "\x1b[31m", "_^%#")


@pytest.mark.parametrize("kind", ["bars", "lines"])
def test_no_name_makes_a_figure_fail_or_warn(kind):
    count = len(NAMES)
    values = (Spread(0.5, None, 1),) * count
    series = tuple(Series(name, values) for name in NAMES)
    plot = Plot("p", NAMES[2], "", kind, NAMES[0], NAMES, series[:1] if kind == "bars" else series)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = picture(plot)
    assert data.startswith(b"\x89PNG")


def test_names_stay_apart_where_no_font_has_them(monkeypatch):
    def drawn(name):
        series = Series("", (Spread(0.5, None, 1),))
        return picture(Plot("p", name, "", "bars", "", (name,), (series,)))

    monkeypatch.setattr(fonts, "_fonts", lambda: {fonts.USUAL: usual})
    fonts._family_of.cache_clear()
    assert fonts.legible("cat \u732b \U0001f9a0\x1b") == "cat \\u732b \\U0001f9a0\\x1b"
    assert fonts.legible("\u043a\u043e\u0442 \u00e9") == "\u043a\u043e\u0442 \u00e9"
    assert drawn("\u732b") != drawn("\u72ac")
    fonts._family_of.cache_clear()


def test_a_font_that_has_the_characters_is_taken(monkeypatch):
    other = next(path for name, path in fonts._fonts().items() if name != fonts.USUAL)
    monkeypatch.setattr(fonts, "_fonts", lambda: {fonts.USUAL: usual, "Other": other})
    monkeypatch.setattr(fonts, "_characters", lambda path: {0x732B} if path == other else {0x61})
    fonts._family_of.cache_clear()
    assert fonts.legible("a\u732b") == "a\u732b"
    assert fonts.families("a\u732b") == [fonts.USUAL, "Other"]
    assert fonts.file_for("\u732b") == other
    assert fonts.file_for("a\u732b") == usual
    fonts._family_of.cache_clear()
