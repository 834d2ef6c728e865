"""The plots of the page, as plotly figures without colours of text and grid.

The page sets those colours by the reader's light or dark setting. The colours of the data are from
the palette of Okabe and Ito and have a contrast of at least 3:1 on both backgrounds.

References
----------
M. Okabe and K. Ito, "Color Universal Design (CUD): How to make figures and presentations that
are friendly to colorblind people", 2008, https://jfly.uni-koeln.de/color/.
"""

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

import plotly.graph_objects as go

from tensorpress.report.content import Curve, Curves, FilePart, Histogram, LayerRow

BEFORE, AFTER = "#8C8C8C", "#0072B2"
_PHASES = (("#0072B2", "solid"), ("#D55E00", "dash"), ("#009E73", "dot"), ("#CC79A7", "dashdot"))
_MAX_PARTS = 16  # bars of the file's parts
_MAX_MARKERS = 40  # epochs up to which each has a marker
_MAX_NAME = 26  # characters of a layer's name


def parameters_by_layer(layers: Sequence[LayerRow]) -> go.Figure:
    """Return a bar chart of every layer's dense and pressed parameters, on a logarithmic axis.

    Examples
    --------
    >>> row = LayerRow("ip1", "Linear", "svd", (500, 800), (500, 800), (10,), 400_000, 13_000)
    >>> [tuple(bar.x) for bar in parameters_by_layer([row]).data]
    [(400000,), (13000,)]
    """
    places = list(range(len(layers)))
    names = [escape(row.name) for row in layers]
    figure = _figure(height=92 + 30 * len(layers))
    for label, color, params in (
        ("dense", BEFORE, [row.dense_params for row in layers]),
        ("pressed", AFTER, [row.pressed_params for row in layers]),
    ):
        figure.add_bar(
            x=params,
            y=places,
            orientation="h",
            name=label,
            marker_color=color,
            customdata=names,
            hovertemplate="%{customdata}: %{x:,} " + label + "<extra></extra>",
        )
    largest = max((row.dense_params for row in layers), default=1)
    figure.update_layout(barmode="group", bargap=0.32, bargroupgap=0.0)
    figure.update_xaxes(
        title="parameters (logarithmic)",
        type="log",
        range=[0, math.log10(max(largest, 10)) + 0.05],
        dtick=1,
        tickformat="~s",
    )
    _name_rows(figure, [row.name for row in layers])
    return figure


def weight_histogram(histogram: Histogram) -> go.Figure:
    """Return a histogram of a layer's stored weights before and after quantization.

    Counts are on a logarithmic axis, because quantization gathers them into a few tall bars.

    Examples
    --------
    >>> figure = weight_histogram(Histogram("ip1", [-1.0, 0.0, 1.0], [3, 5], [0, 8]))
    >>> [tuple(bar.y) for bar in figure.data]
    [(3, 5), (0, 8)]
    """
    edges = histogram.edges
    bins = list(pairwise(edges))
    figure = _figure(height=210)
    for label, color, counts, width in (
        ("before", BEFORE, histogram.before, 1.0),
        ("after quantization", AFTER, histogram.after, 0.6),
    ):
        figure.add_bar(
            x=[(low + high) / 2 for low, high in bins],
            y=counts,
            width=[width * (high - low) for low, high in bins],
            name=label,
            marker={"color": color, "line": {"width": 0}},
            hovertemplate="%{x:.3g}: %{y:,} " + label + "<extra></extra>",
        )
    largest = max([*histogram.before, *histogram.after, 1])
    figure.update_layout(barmode="overlay", showlegend=False, margin={"t": 8})
    figure.update_xaxes(title="weight", nticks=5)
    # The axis starts at half a weight, so that a bin with a single weight has a bar.
    figure.update_yaxes(
        title="weights",
        type="log",
        range=[math.log10(0.5), math.log10(largest * 1.5)],
        dtick=1,
        tickformat="~s",
    )
    return figure


def training_curves(groups: Sequence[Curves]) -> list[go.Figure]:
    """Return a figure for each quantity; a phase has the same colour and dash in all of them.

    The axis is logarithmic where positive values span more than a factor of thirty.

    Examples
    --------
    >>> loss = Curves("Training loss", "", [Curve("train", [1, 2], [2.0, 0.01])])
    >>> training_curves([loss])[0].layout.yaxis.type
    'log'
    """
    phases = list(dict.fromkeys(curve.name for group in groups for curve in group.curves))
    style = {name: _PHASES[index % len(_PHASES)] for index, name in enumerate(phases)}
    return [_curve_figure(group, style) for group in groups]


def bytes_by_part(parts: Sequence[FilePart]) -> go.Figure:
    """Return a bar chart of the parts of a file, largest first; the smallest of many share a bar.

    Examples
    --------
    >>> figure = bytes_by_part([FilePart("header", 96), FilePart("factors", 1000)])
    >>> tuple(figure.data[0].x), tuple(figure.data[0].text)
    ((1000, 96), ('1,000 (91.2 %)', '96 (8.8 %)'))
    """
    ranked = sorted(parts, key=lambda part: part.bytes, reverse=True)
    if len(ranked) > _MAX_PARTS:
        small = ranked[_MAX_PARTS - 1 :]
        rest = FilePart(f"{len(small)} smaller parts", sum(part.bytes for part in small))
        ranked = [*ranked[: _MAX_PARTS - 1], rest]
    total = sum(part.bytes for part in ranked) or 1
    figure = _figure(height=64 + 26 * len(ranked))
    figure.add_bar(
        x=[part.bytes for part in ranked],
        y=list(range(len(ranked))),
        orientation="h",
        marker_color=AFTER,
        text=[f"{part.bytes:,.0f} ({100 * part.bytes / total:.1f} %)" for part in ranked],
        textposition="outside",
        cliponaxis=False,
        customdata=[escape(part.name) for part in ranked],
        hovertemplate="%{customdata}: %{x:,.0f} bytes<extra></extra>",
    )
    largest = max((part.bytes for part in ranked), default=1)
    figure.update_layout(bargap=0.3, showlegend=False, margin={"t": 8})
    # Room on the right for the text of the longest bar, on a phone too.
    figure.update_xaxes(title="bytes", range=[0, 1.75 * largest], nticks=6, tickformat="~s")
    _name_rows(figure, [part.name for part in ranked])
    return figure


def _figure(height: int) -> go.Figure:
    """Return an empty figure of a height in pixels."""
    figure = go.Figure(
        layout={
            "height": height,
            "margin": {"l": 8, "r": 12, "t": 36, "b": 8},
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
            "dragmode": False,
        }
    )
    figure.layout.template = None
    figure.update_xaxes(automargin=True, fixedrange=True)
    figure.update_yaxes(automargin=True, fixedrange=True)
    return figure


def _name_rows(figure: go.Figure, names: Sequence[str]) -> None:
    """Label the rows of horizontal bars from the top down.

    Rows are placed by number and not by name, so that equal or shortened names stay apart.
    """
    labels = [escape(_shorten(name)) for name in names]
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=labels,
        range=[len(names) - 0.4, -0.6],
        showgrid=False,
    )


def _shorten(name: str) -> str:
    """Return a name without the middle if it is long: both of its ends tell layers apart."""
    if len(name) <= _MAX_NAME:
        return name
    tail = (_MAX_NAME - 1) * 2 // 3
    return f"{name[: _MAX_NAME - 1 - tail]}…{name[-tail:]}"


def _curve_figure(group: Curves, style: dict[str, tuple[str, str]]) -> go.Figure:
    """Return the figure of one quantity, with the colour and dash of each phase."""
    figure = _figure(height=280)
    unit = f" {group.unit}" if group.unit else ""
    for curve in group.curves:
        color, dash = style[curve.name]
        figure.add_scatter(
            x=curve.epochs,
            y=curve.values,
            name=escape(curve.name),
            mode="lines+markers" if len(curve.epochs) <= _MAX_MARKERS else "lines",
            line={"color": color, "dash": dash, "width": 2},
            marker={"size": 5},
            hovertemplate="epoch %{x}: %{y:.4g}" + escape(unit),
        )
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="epoch", nticks=8)
    figure.update_yaxes(title=escape(group.unit), nticks=6)
    if _spans_decades(group.curves):
        figure.update_yaxes(type="log", tickformat="~g", dtick="D2")
    return figure


def _spans_decades(curves: Sequence[Curve]) -> bool:
    """Return whether the values are positive and span more than a factor of thirty."""
    values = [
        value
        for curve in curves
        for value in curve.values
        if value is not None and math.isfinite(value)
    ]
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)
