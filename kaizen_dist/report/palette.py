"""The colours of charts and heat maps, by day and by night.

Charts are drawn in the colours of the light page, and refer to the style sheet's variables where
they lie in a page. The ramps of the heat maps are steps of equal OKLab lightness, so that equal
steps of accuracy look equal; lightness alone carries the order, for any colour vision.
"""

from typing import Any

INK, SOFT, FAINT = "#14181f", "#566070", "#e5e8ed"
COLOURS = ("#0b66b0", "#c94a00", "#007f5c", "#a5458c", "#a07400", "#3b9ad6", "#5a626e")
VARIABLES = {INK: "--ink", SOFT: "--soft", FAINT: "--faint"} | {
    colour: f"--c{i}" for i, colour in enumerate(COLOURS)
}
"""Of style.css, where each colour has a value for light and one for dark pages."""

LIGHT = (
    "#edf8fa",
    "#c0eaf2",
    "#96d9eb",
    "#6ec6e4",
    "#4ab2dc",
    "#299dd2",
    "#0888c5",
    "#0072b5",
    "#035ca2",
    "#0f488c",
    "#153574",
)
DARK = (
    "#1e2534",
    "#203655",
    "#1d4973",
    "#105e8f",
    "#0074a6",
    "#008bba",
    "#00a2ca",
    "#2cb9d6",
    "#59cfe0",
    "#85e3ea",
    "#b3f4f4",
)
"""From an accuracy of 0 to one of 1: nearly paper to deep blue, and nearly night to bright."""
WHITE_ON_LIGHT, WHITE_ON_DARK = 0.66, 0.44
"""Text on a cell is white from this value on (light), or up to it (dark): 4.5 : 1 in WCAG 2."""


def ramp_colour(ramp: tuple[str, ...], value: float) -> str:
    """The colour of `value` in [0, 1], linear between the steps, as #rrggbb."""
    place = value * (len(ramp) - 1)
    low = min(int(place), len(ramp) - 2)
    ends = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in ramp[low : low + 2]]
    return "#" + "".join(
        f"{round(a + (b - a) * (place - low)):02x}" for a, b in zip(*ends, strict=True)
    )


def cell_style(value: float) -> str:
    """CSS variables of a heat map's cell: its colour and its text's, by day and by night."""
    light, dark = ramp_colour(LIGHT, value), ramp_colour(DARK, value)
    by_day = "#ffffff" if value >= WHITE_ON_LIGHT else "#000000"
    by_night = "#ffffff" if value <= WHITE_ON_DARK else "#000000"
    return f"--cell:{light};--text:{by_day};--night-cell:{dark};--night-text:{by_night}"


def colormap() -> Any:
    """The light ramp for matplotlib."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ramp", LIGHT)
