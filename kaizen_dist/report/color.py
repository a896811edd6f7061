"""The colour ramp of the heat maps: perceptually uniform, one for light and one for dark pages.

In comes a fraction, out go the colour of its cell and that of the text on it. The ramp is a
straight line of lightness in OKLab (Ottosson 2020), so that equal steps of accuracy look
equal; the order survives any colour blindness, because lightness alone carries it.
"""

from dataclasses import dataclass
from math import cos, radians, sin
from typing import TypeAlias

RGB: TypeAlias = tuple[float, float, float]
"""sRGB, each in [0, 1]."""

INK, PAPER = "#000000", "#ffffff"
LEGIBLE = 4.5
"""Least contrast of text in WCAG 2, level AA: white or black always reaches it."""


@dataclass(frozen=True)
class Ramp:
    """From low to high: OKLab lightness, chroma at its ends and middle, and hue in degrees."""

    lightness: tuple[float, float]
    chroma: tuple[float, float, float]
    hue: tuple[float, float]

    def at(self, value: float) -> str:
        """The colour of `value` in [0, 1], as #rrggbb."""
        low, middle, high = self.chroma
        bow = 4 * value * (1 - value)
        chroma = low + (high - low) * value + (middle - (low + high) / 2) * bow
        hue = radians(self.hue[0] + (self.hue[1] - self.hue[0]) * value)
        lightness = self.lightness[0] + (self.lightness[1] - self.lightness[0]) * value
        return to_hex(_oklab_to_srgb(lightness, chroma * cos(hue), chroma * sin(hue)))


LIGHT = Ramp(lightness=(0.972, 0.345), chroma=(0.012, 0.125, 0.115), hue=(205, 262))
"""On white: a low accuracy is nearly paper, a high one deep blue."""
DARK = Ramp(lightness=(0.265, 0.925), chroma=(0.03, 0.125, 0.065), hue=(264, 195))
"""On black: a low accuracy is nearly night, a high one bright."""


def ink_on(colour: str) -> str:
    """White text where it is legible on `colour` (4.5 : 1 in WCAG 2), else dark text.

    Between the two, white wins: on a mid blue it reads better than its ratio says.
    """
    return PAPER if contrast(PAPER, colour) >= LEGIBLE else INK


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    bright, dim = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def to_hex(colour: RGB) -> str:
    """#rrggbb, with what lies outside sRGB cut to its edge."""
    return "#" + "".join(f"{round(255 * min(1.0, max(0.0, c))):02x}" for c in colour)


def _luminance(colour: str) -> float:
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _oklab_to_srgb(lightness: float, a: float, b: float) -> RGB:
    """https://bottosson.github.io/posts/oklab/"""
    l_ = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m_ = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s_ = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
        -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
        -0.0041960863 * l_ - 0.7034186147 * m_ + 1.7076147010 * s_,
    )
    r, g, b = (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in linear)
    return r, g, b
