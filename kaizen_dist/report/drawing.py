"""matplotlib's figures as PNG files, and as SVG elements of a page.

In a page the colours are the style sheet's variables, so that a figure follows light and dark;
its texts are text in the page's font, and every id is its own.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from xml.etree import ElementTree

from kaizen_dist.common.console import printable
from kaizen_dist.common.fonts import families, legible
from kaizen_dist.report.palette import VARIABLES

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 13.0,
    "lines.linewidth": 2.0,
    "lines.scale_dashes": False,
    "svg.fonttype": "none",
    # What stands between dollars in a name is no formula.
    "text.parse_math": False,
}


def png(title: str, draw: Callable[[Any], None]) -> bytes:
    """What `draw` draws into matplotlib's axes, as a PNG file of 1024 x 640 pixels."""
    from matplotlib.text import Text

    def whole(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.set_title(legible(title), loc="left", fontsize=11)
        axes.tick_params(labelsize=9)
        draw(axes)
        for item in (axes.xaxis.label, axes.yaxis.label):
            item.set_fontsize(10)
        # Asked for, the labels of the ticks know what they say.
        labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        texts = [*figure.findobj(Text), *labels]
        used = families("".join(text.get_text() for text in texts))
        for text in texts:
            text.set_fontfamily(used)

    return _drawn(whole, (6.4, 4.0), 160, "png", title)


def _drawn(
    draw: Callable[[Any], None],
    inches: tuple[float, float],
    dpi: int,
    kind: Literal["svg", "png"],
    salt: str,
) -> bytes:
    """A figure as a file; the same numbers give the same bytes, whatever day it is."""
    # The object interface: pyplot would keep figures, and look for a screen.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    encoded = io.BytesIO()
    clear = {"figure.facecolor": "none", "axes.facecolor": "none"} if kind == "svg" else {}
    with rc_context(_SETTINGS | clear | {"svg.hashsalt": salt}):
        figure = Figure(figsize=inches, dpi=dpi, layout="constrained" if kind == "png" else None)
        draw(figure)
        unnamed = {"Software": None} if kind == "png" else {"Date": None}
        figure.savefig(encoded, format=kind, metadata=unnamed)
    return encoded.getvalue()


def inline(
    draw: Callable[[Any], None],
    size: tuple[float, float],
    name: str,
    title: str,
    description: str,
    hints: Mapping[str, Sequence[str]],
) -> str:
    """A figure of `size` px as an element of a page: described, in the page's colours and font.

    `hints` are texts of the dots of an artist, by its gid; one alone is that of all its dots.
    """
    # At 72 dpi a point of matplotlib is a px.
    document = _drawn(draw, (size[0] / 72, size[1] / 72), 72, "svg", name)
    root = ElementTree.fromstring(document)  # noqa: S314 - what matplotlib wrote
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        own = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        style = re.sub(r"font-family:[^;]*;? ?", "", own.pop("style", ""))
        for colour, variable in VARIABLES.items():
            style = style.replace(colour, f"var({variable})")
        if element.tag == "g":
            _explain(element, hints.get(own.pop("id", ""), ()))
        element.attrib = own | ({"style": style} if style else {})
    ids = {"title": f"{name}-t", "desc": f"{name}-d"}
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": " ".join(ids.values()),
    }
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(tag, id=ids[tag])
        element.text = printable(text)
        root.insert(0, element)
    return ElementTree.tostring(root, encoding="unicode")


def _explain(group: ElementTree.Element, hints: Sequence[str]) -> None:
    dots = [group] if len(hints) == 1 else [e for e in group.iter() if e.tag.endswith("use")]
    for dot, hint in zip(dots, hints, strict=False):
        ElementTree.SubElement(dot, "title").text = printable(hint)
