"""The plots on pages, drawn by matplotlib.

Data colours are from the palette of Okabe and Ito, with a contrast of at least 3:1 on light and
dark backgrounds.

References
----------
M. Okabe and K. Ito, "Color Universal Design (CUD): How to make figures and presentations that
are friendly to colorblind people", 2008, https://jfly.uni-koeln.de/color/.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from tensorpress.report.content import Curve, Curves, FilePart, Histogram, LayerRow
from tensorpress.report.svg import MUTED, add_hover, new_figure

BEFORE, AFTER = "#8C8C8C", "#0072B2"
_PHASES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", ":"), ("#CC79A7", "-."))
_MAX_PARTS = 16  # bars of the file's parts
_MAX_MARKERS = 40  # epochs up to which each epoch has a marker
_MAX_NAME = 26  # characters of a layer's name


def parameters_by_layer(layers: Sequence[LayerRow], width: int) -> Figure:
    """Return a bar chart of every layer's dense and pressed parameters on a logarithmic axis.

    Parameters
    ----------
    layers : sequence of LayerRow
        The layers, from top to bottom.
    width : int
        Width in pixels.

    Examples
    --------
    >>> row = LayerRow("ip1", "Linear", "svd", (500, 800), (500, 800), (10,), 400_000, 13_000)
    >>> [int(bar.get_width()) for bar in parameters_by_layer([row], 340).axes[0].patches]
    [400000, 13000]
    """
    figure = new_figure(width, 92 + 30 * len(layers))
    axes = figure.subplots()
    for shift, label, color, params in (
        (-0.17, "dense", BEFORE, [row.dense_params for row in layers]),
        (0.17, "pressed", AFTER, [row.pressed_params for row in layers]),
    ):
        places = [place + shift for place in range(len(layers))]
        bars = axes.barh(places, params, height=0.34, color=color, label=label)
        for bar, row, number in zip(bars, layers, params, strict=True):
            add_hover(bar, f"{row.name}: {number:,} {label}")
    largest = max((row.dense_params for row in layers), default=1)
    axes.set_xscale("log")
    axes.set_xlim(1, 1.1 * max(largest, 10))
    axes.set_xlabel("parameters (logarithmic)")
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    _format_large(axes.xaxis)
    axes.grid(axis="x")
    add_legend(axes)
    _name_rows(axes, [row.name for row in layers])
    return figure


def weight_histogram(histogram: Histogram, width: int) -> Figure:
    """Return a histogram of a layer's stored weights before and after quantization.

    The axis of counts is logarithmic, because quantization collects weights in a few tall bars.

    Parameters
    ----------
    histogram : Histogram
        The counts.
    width : int
        Width in pixels.

    Examples
    --------
    >>> figure = weight_histogram(Histogram("ip1", [-1.0, 0.0, 1.0], [3, 5], [0, 8]), 280)
    >>> [int(bar.get_height()) for bar in figure.axes[0].patches]
    [3, 5, 0, 8]
    """
    bins = list(pairwise(histogram.edges))
    centres = [(low + high) / 2 for low, high in bins]
    figure = new_figure(width, 210)
    axes = figure.subplots()
    for label, color, counts, share in (
        ("before", BEFORE, histogram.before, 1.0),
        ("after quantization", AFTER, histogram.after, 0.6),
    ):
        widths = [share * (high - low) for low, high in bins]
        bars = axes.bar(centres, counts, width=widths, color=color)
        for bar, centre, number in zip(bars, centres, counts, strict=True):
            add_hover(bar, f"{centre:.3g}: {number:,} {label}")
    largest = max([*histogram.before, *histogram.after, 1])
    axes.set_xlabel("weight")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylabel("weights")
    # The axis starts at half a weight, so that a bin with a single weight has a visible bar.
    axes.set_yscale("log")
    axes.set_ylim(0.5, 1.5 * largest)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    _format_large(axes.yaxis)
    axes.grid(axis="y")
    return figure


def training_curves(group: Curves, phases: Sequence[str], width: int) -> Figure:
    """Return a plot of a quantity over epochs.

    The axis is logarithmic if positive values span more than a factor of thirty.

    Parameters
    ----------
    group : Curves
        The quantity.
    phases : sequence of str
        Names of all phases on the page; each has the same colour and dash in all plots.
    width : int
        Width in pixels.

    Examples
    --------
    >>> loss = Curves("Training loss", "", [Curve("train", [1, 2], [2.0, 0.01])])
    >>> training_curves(loss, ["train"], 400).axes[0].get_yscale()
    'log'
    """
    figure = new_figure(width, 280)
    axes = figure.subplots()
    for curve in group.curves:
        color, dash = _PHASES[phases.index(curve.name) % len(_PHASES)]
        values = [math.nan if value is None else value for value in curve.values]
        marker = "o" if len(values) <= _MAX_MARKERS else ""
        style: dict[str, Any] = {"color": color, "linestyle": dash, "marker": marker}
        axes.plot(curve.epochs, values, linewidth=2, markersize=4, label=curve.name, **style)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylabel(group.unit)
    if _spans_decades(group.curves):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.grid()
    add_legend(axes)
    return figure


def bytes_by_part(parts: Sequence[FilePart], width: int) -> Figure:
    """Return a bar chart of a file's parts, largest first; the smallest of many share a bar.

    Parameters
    ----------
    parts : sequence of FilePart
        The parts.
    width : int
        Width in pixels.

    Examples
    --------
    >>> figure = bytes_by_part([FilePart("header", 96), FilePart("factors", 1000)], 340)
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['1,000 (91.2 %)', '96 (8.8 %)']
    """
    ranked = sorted(parts, key=lambda part: part.bytes, reverse=True)
    if len(ranked) > _MAX_PARTS:
        small = ranked[_MAX_PARTS - 1 :]
        rest = FilePart(f"{len(small)} smaller parts", sum(part.bytes for part in small))
        ranked = [*ranked[: _MAX_PARTS - 1], rest]
    total = sum(part.bytes for part in ranked) or 1
    figure = new_figure(width, 64 + 26 * len(ranked))
    axes = figure.subplots()
    bars = axes.barh(range(len(ranked)), [part.bytes for part in ranked], height=0.7, color=AFTER)
    for bar, part in zip(bars, ranked, strict=True):
        add_hover(bar, f"{part.name}: {part.bytes:,.0f} bytes")
    texts = [f"{part.bytes:,.0f} ({100 * part.bytes / total:.1f} %)" for part in ranked]
    axes.bar_label(bars, texts, padding=4, fontsize=11)
    # Leave space on the right for the text of the longest bar, even on a phone.
    room = 1.25 if width > 500 else 1.75
    axes.set_xlim(0, room * max((part.bytes for part in ranked), default=1))
    axes.set_xlabel("bytes")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _format_large(axes.xaxis)
    axes.grid(axis="x")
    _name_rows(axes, [part.name for part in ranked])
    return figure


def errors_by_rank(
    curves: Sequence[Mapping[str, Any]], chosen: Sequence[int], width: int
) -> Figure:
    """Return a plot of a layer's error over its ranks, with the chosen ranks.

    Parameters
    ----------
    curves : sequence of mapping
        ``ranks`` and ``errors`` of each unfolding of the weight.
    chosen : sequence of int
        The chosen rank of each curve.
    width : int
        Width in pixels.

    Examples
    --------
    >>> figure = errors_by_rank([{"ranks": [1, 2, 4], "errors": [0.8, 0.5, 0.0]}], [2], 300)
    >>> [int(x) for x in figure.axes[0].lines[1].get_xdata()]
    [2]
    """
    figure = new_figure(width, 190)
    axes = figure.subplots()
    for number, curve in enumerate(curves):
        color, dash = _PHASES[number % len(_PHASES)]
        axes.plot(curve["ranks"], curve["errors"], color=color, linestyle=dash, linewidth=2)
        if number < len(chosen):
            rank = chosen[number]
            error = float(np.interp(rank, curve["ranks"], curve["errors"]))
            (mark,) = axes.plot([rank], [error], "o", color=color, markersize=7)
            add_hover(mark, f"rank {rank}: error {error:.1%}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=5))
    _format_large(axes.xaxis)
    axes.set_xlabel("rank")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid()
    return figure


def parameters_and_errors(rows: Sequence[Mapping[str, Any]], width: int) -> Figure:
    """Return a plot of the output differences of models over their parameters.

    Parameters
    ----------
    rows : sequence of mapping
        Models with ``name``, ``params`` and ``fidelity``.
    width : int
        Width in pixels.

    Examples
    --------
    >>> rows = [{"name": "small", "params": 1200, "fidelity": {"error": 0.1}}]
    >>> [float(y) for y in parameters_and_errors(rows, 340).axes[0].lines[0].get_ydata()]
    [0.1]
    """
    figure = new_figure(width, 300)
    axes = figure.subplots()
    sizes = [row["params"] for row in rows]
    smallest, largest = min(sizes), max(sizes)
    for row in rows:
        error = row["fidelity"]["error"]
        (mark,) = axes.plot([row["params"]], [error], "o", color=AFTER, markersize=8)
        add_hover(mark, f"{row['name']}: {row['params']:,} parameters, {error:.1%}")
        is_right = row["params"] > (largest + smallest) / 2
        label = axes.annotate(
            _shorten(row["name"]),
            (row["params"], error),
            (-8 if is_right else 8, 6),
            textcoords="offset points",
            ha="right" if is_right else "left",
        )
        label.set_in_layout(False)
    axes.set_xlabel("parameters")
    axes.set_ylabel("outputs differ by")
    axes.margins(0.25)
    axes.set_ylim(bottom=0)
    _format_large(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid()
    return figure


def _format_large(axis: Axis) -> None:
    """Format large numbers on an axis as 10k or 3M, without minor ticks."""
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_locator(NullLocator())


def add_legend(axes: Axes) -> None:
    """Put the legend above the plot."""
    if not axes.get_legend_handles_labels()[1]:
        return
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0, handlelength=1.8)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows of horizontal bars from top to bottom.

    Rows are placed by index, so that equal or shortened names do not collide.
    """
    axes.set_yticks(range(len(names)), [_shorten(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=MUTED)


def _shorten(name: str) -> str:
    """Return a long name without its middle, because both ends tell layers apart."""
    if len(name) <= _MAX_NAME:
        return name
    tail = (_MAX_NAME - 1) * 2 // 3
    return f"{name[: _MAX_NAME - 1 - tail]}…{name[-tail:]}"


def _spans_decades(curves: Sequence[Curve]) -> bool:
    """Return whether the values are positive and span more than a factor of thirty."""
    values = [
        value
        for curve in curves
        for value in curve.values
        if value is not None and math.isfinite(value)
    ]
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)
