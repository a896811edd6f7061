"""Names in any script, in pictures: in a font of this machine that has their characters.

What no font has is written as an escape (\\u732b) rather than as a box, so that names stay apart.
"""

from functools import cache
from pathlib import Path

from kaizen_dist.common.console import one_line

USUAL = "DejaVu Sans"
"""It comes with matplotlib."""
_ODD = ("Last Resort", "STIXNonUnicode", "STIXSize", "cm")
"""Fonts that draw boxes, or other characters than they are asked for."""


def legible(text: str) -> str:
    """A text on one line, without what would be drawn as boxes."""
    shown = [c if _family_of(c) else _escape(c) for c in one_line(text)]
    return "".join(shown)


def families(text: str) -> list[str]:
    """The fonts that a legible text takes, the usual one first."""
    return list(dict.fromkeys([USUAL, *filter(None, map(_family_of, text))]))


def file_for(text: str) -> Path:
    """The file of a font for a whole legible text; of the usual one where none has all of it."""
    fonts = _fonts()
    fitting = (path for path in fonts.values() if set(map(ord, text)) <= _characters(path))
    return next(fitting, fonts[USUAL])


@cache
def _family_of(character: str) -> str | None:
    return next((f for f, path in _fonts().items() if ord(character) in _characters(path)), None)


@cache
def _fonts() -> dict[str, Path]:
    """The plain fonts there are by family, the usual one first, the others by name."""
    from matplotlib.font_manager import findfont, fontManager

    fonts = {USUAL: Path(findfont(USUAL))}
    for font in sorted(fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        plain = (font.style, font.stretch, font.weight) == ("normal", "normal", 400)
        if plain and not font.name.startswith(_ODD):
            fonts.setdefault(font.name, Path(font.fname))
    return fonts


@cache
def _characters(path: Path) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError):  # a font that matplotlib remembers and that is gone, or broken
        return frozenset()


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
