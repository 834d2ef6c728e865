"""The page that compares models: one self-contained HTML file without scripts."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.table import Table
from rich.text import Text

from tensorpress.report import formatting
from tensorpress.report.model_page import as_data
from tensorpress.report.tables import Name, plain_table
from tensorpress.report.templates import load_template
from tensorpress.utils.atomic_files import write_atomically

Row = Mapping[str, Any]

_COLUMNS = {
    "params": "parameters",
    "bytes": "bytes",
    "macs": "MACs",
    "latency_ms": "latency, ms",
    "error": "outputs<br>differ by",
    "agreement": "same<br>prediction",
    "metric": "metric",
}


def write_comparison_page(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page of a comparison.

    Parameters
    ----------
    content : mapping
        The result of `tensorpress.compare`.
    path : path-like
        The file to write or replace.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written.
    """
    from tensorpress.report.figures import parameters_and_errors
    from tensorpress.report.svg import NARROW, WIDE, to_svg

    rows = content["models"]
    keys = columns(rows)
    points = [row for row in rows if value(row, "error") is not None]
    label = "Difference of outputs over parameters, the numbers of the table"
    page = load_template("comparison.html.jinja").render(
        content=content,
        get=content.get,
        columns={key: _COLUMNS[key] for key in keys},
        cell=format_cell,
        plot=to_svg(partial(parameters_and_errors, points), label, WIDE, NARROW) if points else "",
        downloads={
            "models.csv": as_data("text/csv", _to_csv(rows, keys)),
            "comparison.json": as_data("application/json", json.dumps(content, indent=1)),
        },
    )
    write_atomically(path, page.encode())


def comparison_table(rows: Sequence[Row]) -> Table:
    """Return the table of a comparison for the terminal.

    Examples
    --------
    >>> from rich.console import Console
    >>> rows = [{"name": "dense", "params": 830}, {"name": "rank 2", "params": 190}]
    >>> Console(width=80).print(comparison_table(rows))
            parameters
    ──────────────────
    dense          830
    rank 2         190
    """
    table = plain_table()
    table.add_column("")
    keys = columns(rows)
    for key in keys:
        table.add_column(_COLUMNS[key].replace("<br>", "\n"), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Name(row["name"]), *(Text(format_cell(row, key)) for key in keys))
    return table


def columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns for which any model has a value."""
    return [key for key in _COLUMNS if any(value(row, key) is not None for row in rows)]


def value(row: Row, key: str) -> float | None:
    """Return a number of a model, or None."""
    fidelity = row.get("fidelity") or {}
    return fidelity.get(key) if key in ("error", "agreement") else row.get(key)


def format_cell(row: Row, key: str) -> str:
    """Return a number of a model as text."""
    number = value(row, key)
    if number is None:
        return formatting.MISSING
    if key in ("error", "agreement"):
        return f"{100 * number:.1f} %"
    if key == "latency_ms":
        return formatting.decimal(number, 2)
    return f"{number:.4g}" if key == "metric" else formatting.count(number)


def _to_csv(rows: Sequence[Row], keys: Sequence[str]) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["name", *keys])
    for row in rows:
        writer.writerow([row["name"], *(value(row, key) for key in keys)])
    return file.getvalue()
