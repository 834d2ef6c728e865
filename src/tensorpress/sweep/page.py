"""The page of a sweep: its table, and a plot of error over bytes."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, LogLocator, NullLocator

from tensorpress.report import formatting
from tensorpress.report.figures import AFTER, BEFORE, add_legend
from tensorpress.report.svg import NARROW, WIDE, add_hover, new_figure, to_svg
from tensorpress.report.templates import load_template
from tensorpress.sweep.table import format_mean, sort_variants

_REFERENCE = "#D55E00"


def frontier_figure(content: Mapping[str, Any], width: int) -> Figure:
    """Return a figure of validation errors over bytes, with the frontier as a step line.

    Picked variants have a ring; references are diamonds with names. The axis of bytes is
    logarithmic, and so is that of errors if they span more than a factor of thirty.

    Parameters
    ----------
    content : mapping
        The result of `tensorpress.sweep.sweep`.
    width : int
        Width in pixels.

    Examples
    --------
    >>> one = {"name": "rank=4", "bytes": 1204, "validation_error": 1.5, "frontier": True}
    >>> figure = frontier_figure({"variants": [one], "picks": [], "references": []}, 340)
    >>> figure.axes[0].get_legend_handles_labels()[1]
    ['frontier']
    """
    complete = [variant for variant in content["variants"] if variant["bytes"] is not None]
    complete.sort(key=lambda variant: float(variant["bytes"]))
    optimal = [variant for variant in complete if variant["frontier"]]
    dominated = [variant for variant in complete if not variant["frontier"]]
    picked = [pick for pick in content["picks"] if pick["variant"] is not None]
    references = content["references"]
    figure = new_figure(width, 440)
    axes = figure.subplots()
    if dominated:
        _add_points(axes, dominated, "dominated", color=BEFORE, alpha=0.45, markersize=6)
    if optimal:
        sizes, errors = _places(optimal)
        axes.step(sizes, errors, where="post", color=AFTER, linewidth=2)
        _add_points(axes, optimal, "frontier", color=AFTER, markersize=8)
    if picked:
        (rings,) = axes.plot(*_places(picked), "o", label="picked", color=AFTER)
        rings.set(markersize=16, markerfacecolor="none", markeredgewidth=2)
    if references:
        points = [{**one, "validation_error": one["error"]} for one in references]
        _add_points(axes, points, "others", marker="D", color=_REFERENCE, markersize=8)
        # Names are alternately above and below, so that neighbours do not overlap.
        for index, point in enumerate(sorted(points, key=lambda point: float(point["bytes"]))):
            place = (float(point["bytes"]), float(point["error"]))
            shift = (0.0, 8.0 if index % 2 == 0 else -16.0)
            axes.annotate(str(point["name"]), place, shift, textcoords="offset points", ha="center")
    sizes = [float(point["bytes"]) for point in (*complete, *references)]
    errors = [float(one["validation_error"]) for one in complete]
    errors += [float(one["error"]) for one in references]
    axes.set_xlabel("bytes of the file (logarithmic)")
    axes.set_ylabel("error (%)")
    axes.set_xscale("log")
    if sizes:
        _tick(axes.xaxis, _ratio(sizes), EngFormatter(sep=""))
    if _ratio(errors) > 30:
        axes.set_yscale("log")
        _tick(axes.yaxis, _ratio(errors), lambda value, _: f"{value:g}")
    axes.grid()
    add_legend(axes)
    return figure


def _places(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Return bytes and errors of points."""
    return (
        [float(point["bytes"]) for point in points],
        [float(point["validation_error"]) for point in points],
    )


def _add_points(
    axes: Axes, points: Sequence[Mapping[str, Any]], label: str, marker: str = "o", **style: Any
) -> None:
    """Draw points that show their name and numbers when the pointer is over them."""
    for index, point in enumerate(points):
        size, error = float(point["bytes"]), float(point["validation_error"])
        name = label if index == 0 else None
        (line,) = axes.plot([size], [error], linestyle="", marker=marker, label=name, **style)
        add_hover(line, f"{point.get('name', '')}: {size:,.0f} bytes, {error:.2f} %")


def _tick(axis: Axis, ratio: float, formatter: Formatter | Callable[[float, float], str]) -> None:
    """Put ticks at 1, 2 and 5 times powers of ten, or only at powers if the range is large."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 50 else (1,), numticks=12))
    axis.set_major_formatter(formatter)
    axis.set_minor_locator(NullLocator())


def _ratio(values: Sequence[float]) -> float:
    """Return the ratio of the largest to the smallest value, or 1 if not all are positive."""
    low = min(values, default=0.0)
    return max(values) / low if low > 0 and math.isfinite(low) else 1.0


def render(content: Mapping[str, Any]) -> str:
    """Return a sweep as a self-contained HTML page.

    Like the report of a run, the page may not load anything, and all text of the content is
    escaped.

    Parameters
    ----------
    content
        The result of `tensorpress.sweep.sweep`. Examples
    --------
    >>> sweep = {"title": "LeNet-5 & co", "network": "lenet5", "data": "mnist", "seeds": [0]}
    >>> page = render({**sweep, "variants": [], "picks": [], "references": []})
    >>> "LeNet-5 &amp; co" in page
    True
    """
    label = "Validation error over bytes of the file, the numbers of the table below"
    return load_template("sweep.html.jinja", "tensorpress.sweep").render(
        content=content,
        variants=sort_variants(content),
        fmt=formatting,
        format_mean=format_mean,
        as_yaml=_as_yaml,
        plot=to_svg(partial(frontier_figure, content), label, WIDE, NARROW),
    )


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
