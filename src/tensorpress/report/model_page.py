"""The page of a pressed model: one self-contained HTML file without scripts."""

import csv
import io
import json
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tensorpress.report import formatting
from tensorpress.report.content import LayerRow
from tensorpress.report.templates import load_template
from tensorpress.utils.atomic_files import write_atomically

_LABELS = {
    "params": "parameters",
    "bytes": "bytes",
    "macs": "multiply–accumulates",
    "latency_ms": "milliseconds per pass",
}
_MEASURES = (
    ("error", "error", True),
    ("cosine", "cosine", False),
    ("agreement", "same prediction", True),
    ("divergence", "divergence, nats", False),
    ("dense_loss", "dense loss, nats", False),
    ("loss", "loss, nats", False),
)
_COLUMNS = (
    *("name", "kind", "scheme", "shape", "ranks", "error", "dense_params", "params"),
    *("dense_macs", "macs", "dense_ms", "ms"),
)
_MOST_BARS = 60  # layers in the bar chart
_MOST_CURVES = 12  # layers with a plot of errors over ranks


def write_model_page(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page of a pressed or compressed model.

    Parameters
    ----------
    content : mapping
        The result of `tensorpress.report` or `CompressResult.to_dict`, with a ``title``. Missing
        parts are left out.
    path : path-like
        The file to write or replace.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written.
    """
    layers = content.get("layers", [])
    largest = sorted(layers, key=lambda layer: -layer["dense_params"])
    page = load_template("model.html.jinja").render(
        result=content,
        get=content.get,
        labels=_LABELS,
        measures=_MEASURES,
        fmt=formatting,
        total=sum(layer["params"] for layer in layers),
        columns={name for name in _COLUMNS if any(layer.get(name) is not None for layer in layers)},
        layer_plot=_plot_layers(largest[:_MOST_BARS]),
        curve_plots=_plot_curves([layer for layer in largest if layer.get("curves")]),
        downloads={
            "layers.csv": as_data("text/csv", _to_csv(layers)),
            "report.json": as_data("application/json", json.dumps(content, indent=1)),
        },
    )
    write_atomically(path, page.encode())


def _plot_layers(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return a chart of dense and pressed parameters, largest layer first."""
    if not layers:
        return ""
    from tensorpress.report.figures import parameters_by_layer
    from tensorpress.report.svg import NARROW, WIDE, to_svg

    rows = [
        LayerRow(
            *(layer["name"], layer.get("kind", ""), layer["scheme"], (), (), ()),
            layer["dense_params"],
            layer["params"],
        )
        for layer in layers
    ]
    label = "Parameters of every layer before and after, the numbers of the table"
    return to_svg(partial(parameters_by_layer, rows), label, WIDE, NARROW)


def _plot_curves(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return names and error plots of layers."""
    if not layers:
        return []
    from tensorpress.report.figures import errors_by_rank
    from tensorpress.report.svg import to_svg

    return [
        (
            layer["name"],
            to_svg(
                partial(errors_by_rank, layer["curves"], layer["ranks"]),
                f"Error of {layer['name']} over its rank",
                300,
            ),
        )
        for layer in layers[:_MOST_CURVES]
    ]


def _to_csv(layers: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    for layer in layers:
        cells = [layer.get(name) for name in _COLUMNS]
        writer.writerow(["x".join(map(str, x)) if isinstance(x, list) else x for x in cells])
    return file.getvalue()


def as_data(kind: str, text: str) -> str:
    """Return text as a data URL for a download link."""
    return f"data:{kind};base64,{b64encode(text.encode()).decode()}"
