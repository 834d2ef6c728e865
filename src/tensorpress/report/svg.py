"""Plots as SVG inside a page, with the page's colours and without scripts.

Text, ticks and grid are drawn in the light colours of ``page.css``. In the SVG these become the
page's CSS variables, so that the same plot works in dark mode and in print.
"""

import hashlib
import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

TEXT, MUTED, LINE = "#1b1d20", "#595f67", "#deded9"
WIDE, NARROW = 680, 340

_VARIABLES = {TEXT: "var(--text)", MUTED: "var(--muted)", LINE: "var(--line)"}
_HOVER = "hover: "
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tensorpress",
    "text.parse_math": False,
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 12,
    "grid.color": LINE,
    "legend.frameon": False,
    "legend.labelcolor": TEXT,
    "text.color": TEXT,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
}


def new_figure(width: int, height: float) -> Figure:
    """Return an empty figure, with width and height in pixels."""
    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def add_hover(artist: Any, text: str) -> None:
    """Give an artist a text that browsers show as its tooltip."""
    artist.set_gid(_HOVER + text)


def to_svg(draw: Callable[[int], Figure], label: str, *widths: int) -> Markup:
    """Return a plot as markup, drawn for each width.

    Parameters
    ----------
    draw : callable
        Function from a width in pixels to the figure.
    label : str
        Description of the plot for screen readers.
    *widths : int
        One width, or `WIDE` and `NARROW`, of which the page shows the one that fits.

    Examples
    --------
    >>> def draw(width):
    ...     figure = new_figure(width, 100)
    ...     add_hover(figure.subplots().bar([0], [3])[0], "three & more")
    ...     return figure
    >>> plot = to_svg(draw, "a bar", 340)
    >>> "<title>three &amp; more</title>" in plot, "<script" in plot
    (True, False)
    """
    plots = []
    for width in widths:
        with mpl.rc_context(_STYLE):
            file = io.StringIO()
            draw(width).savefig(file, format="svg", transparent=True, metadata={"Date": None})
        plot = _adapt(file.getvalue())
        shown = "" if len(widths) == 1 else " narrow" if width == min(widths) else " wide"
        plot.attrib |= {"class": f"plot{shown}", "role": "img", "aria-label": label}
        plots.append(ElementTree.tostring(plot, encoding="unicode"))
    return Markup("\n".join(plots))


def _adapt(svg: str) -> ElementTree.Element:
    """Return an SVG as an element for a page, with the page's colours and font and unique ids."""
    root = ElementTree.fromstring(svg)
    prefix = hashlib.sha256(svg.encode()).hexdigest()[:8]
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "style": f"max-width: {root.attrib['width'].removesuffix('pt')}px",
    }
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
        parent.tag = parent.tag.partition("}")[2]
        parent.attrib = {
            name.partition("}")[2] or name: _adapt_value(value, prefix, name)
            for name, value in parent.attrib.items()
        }
        hover = parent.attrib.get("id", "")
        if hover.startswith(f"{prefix}-{_HOVER}"):
            parent.attrib = {}
            title = ElementTree.Element("svg}title")
            title.text = hover.removeprefix(f"{prefix}-{_HOVER}")
            parent.insert(0, title)
    return root


def _adapt_value(value: str, prefix: str, name: str) -> str:
    """Return the value of an attribute for the page."""
    if name == "id":
        return f"{prefix}-{value}"
    if name == "d":
        return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", value)
    value = re.sub(r"^#|(?<=url\()#", f"#{prefix}-", value)
    if name == "style":
        value = re.sub(r"font-family: [^;]*;? ?", "", value)
        for color, variable in _VARIABLES.items():
            value = value.replace(color, variable)
    return value
