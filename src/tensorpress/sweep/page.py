"""The page of a sweep: its table, and a plot of error over bytes."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import jinja2
import plotly.graph_objects as go
import yaml
from plotly.offline import get_plotlyjs

from tensorpress.report import formatting
from tensorpress.report.figures import AFTER, BEFORE
from tensorpress.sweep.table import format_mean, sort_variants

_REFERENCE = "#D55E00"


def frontier_figure(content: Mapping[str, Any]) -> go.Figure:
    """Return a figure of validation errors over bytes, with the frontier as a line of steps.

    Picked variants have a ring, references are diamonds with their names. Bytes are on a
    logarithmic axis, and so are errors that span more than a factor of thirty.

    Parameters
    ----------
    content
        What `tensorpress.sweep.sweep` returns.

    Examples
    --------
    >>> one = {"name": "rank=4", "bytes": 1204, "validation_error": 1.5, "frontier": True}
    >>> figure = frontier_figure({"variants": [one], "picks": [], "references": []})
    >>> [(trace.name, tuple(trace.x)) for trace in figure.data]
    [('frontier', (1204,))]
    """
    complete = [variant for variant in content["variants"] if variant["bytes"] is not None]
    complete.sort(key=lambda variant: float(variant["bytes"]))
    optimal = [variant for variant in complete if variant["frontier"]]
    dominated = [variant for variant in complete if not variant["frontier"]]
    picked = [pick for pick in content["picks"] if pick["variant"] is not None]
    references = content["references"]
    figure = go.Figure(
        layout={
            "height": 440,
            "margin": {"l": 8, "r": 12, "t": 36, "b": 8},
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
            "dragmode": False,
            "hovermode": "closest",
            "showlegend": True,
        }
    )
    figure.layout.template = None
    if dominated:
        marker = {"color": BEFORE, "size": 7, "opacity": 0.45}
        _add_points(figure, "dominated", dominated, mode="markers", marker=marker)
    if optimal:
        line = {"color": AFTER, "width": 2, "shape": "hv"}
        marker = {"color": AFTER, "size": 9}
        _add_points(figure, "frontier", optimal, mode="lines+markers", line=line, marker=marker)
    if picked:
        marker = {"symbol": "circle-open", "color": AFTER, "size": 18, "line": {"width": 2}}
        _add_points(figure, "picked", picked, mode="markers", marker=marker, hoverinfo="skip")
    if references:
        _add_references(figure, references)
    sizes = [float(point["bytes"]) for point in (*complete, *references)]
    errors = [float(one["validation_error"]) for one in complete]
    errors += [float(one["error"]) for one in references]
    figure.update_xaxes(
        title="bytes of the file (logarithmic)",
        type="log",
        dtick="D2" if _ratio(sizes) < 50 else 1,
        tickformat="~s",
        fixedrange=True,
        automargin=True,
    )
    figure.update_yaxes(title="error (%)", nticks=8, fixedrange=True, automargin=True)
    if _ratio(errors) > 30:
        figure.update_yaxes(type="log", tickformat="~g", dtick="D2")
    return figure


def _add_points(
    figure: go.Figure, name: str, points: Sequence[Mapping[str, Any]], **style: Any
) -> None:
    figure.add_scatter(
        x=[point["bytes"] for point in points],
        y=[point["validation_error"] for point in points],
        name=name,
        customdata=[escape(str(point.get("name", ""))) for point in points],
        hovertemplate="%{customdata}<br>%{x:,} bytes, %{y:.2f} %<extra></extra>",
        **style,
    )


def _add_references(figure: go.Figure, references: Sequence[Mapping[str, Any]]) -> None:
    names = [escape(str(reference["name"])) for reference in references]
    figure.add_scatter(
        x=[reference["bytes"] for reference in references],
        y=[reference["error"] for reference in references],
        name="others",
        mode="markers+text",
        text=names,
        textposition="top center",
        customdata=names,
        cliponaxis=False,
        marker={"symbol": "diamond", "color": _REFERENCE, "size": 10},
        hovertemplate="%{customdata}<br>%{x:,} bytes, %{y:.2f} %<extra></extra>",
    )


def _ratio(values: Sequence[float]) -> float:
    """Return the ratio of the largest to the smallest value, 1 where they are not all positive."""
    low = min(values, default=0.0)
    return max(values) / low if low > 0 and math.isfinite(low) else 1.0


def render(content: Mapping[str, Any]) -> str:
    """Return the page as HTML with everything it needs inside, about 5 MB.

    As with a run's report the browser may load nothing, and all text of the content is escaped.

    Parameters
    ----------
    content
        What `tensorpress.sweep.sweep` returns.

    Examples
    --------
    >>> sweep = {"title": "LeNet-5 & co", "network": "lenet5", "data": "mnist", "seeds": [0]}
    >>> page = render({**sweep, "variants": [], "picks": [], "references": []})
    >>> "LeNet-5 &amp; co" in page
    True
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [
                jinja2.PackageLoader("tensorpress.sweep", ""),
                jinja2.PackageLoader("tensorpress.report", ""),
            ]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figure = frontier_figure(content)
    return environment.get_template("sweep.html.jinja").render(
        content=content,
        variants=sort_variants(content),
        fmt=formatting,
        format_mean=format_mean,
        as_yaml=_as_yaml,
        plots={"frontier": [json.loads(figure.to_json())]},
        plotlyjs=get_plotlyjs(),
    )


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
