"""The report of a run as one self-contained HTML page."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from tensorpress.report import formatting
from tensorpress.report.content import ReportContent
from tensorpress.report.tables import headline_cells
from tensorpress.report.templates import load_template
from tensorpress.utils.atomic_files import write_atomically

_CONDITIONS = ("seed", "device", "seconds", "latency", "versions")


class _Headline(NamedTuple):
    """One of the large numbers on the page, with label, unit and explanation."""

    label: str
    value: str
    unit: str
    detail: str


def render(content: ReportContent) -> str:
    """Return a report as a self-contained HTML page.

    The page has no scripts and makes no network requests: its content security policy forbids
    loading anything. All text of the content is escaped.

    Parameters
    ----------
    content : ReportContent
        The content. Missing numbers are shown as "–", and plots without data are left out.

    Examples
    --------
    >>> page = render(ReportContent("LeNet-5 & co", metrics={"file": {"bytes": 2104}}))
    >>> "LeNet-5 &amp; co" in page and "2,104" in page
    True
    """
    from tensorpress.report import figures
    from tensorpress.report.svg import NARROW, WIDE, to_svg

    phases = list(dict.fromkeys(curve.name for group in content.curves for curve in group.curves))
    return load_template("page.html.jinja").render(
        content=content,
        headline=_headline(content.metrics),
        cells=headline_cells(content.metrics),
        circumstances=list(
            formatting.flatten(
                {key: content.metrics[key] for key in _CONDITIONS if key in content.metrics}
            )
        ),
        every_number=list(formatting.flatten(content.metrics)),
        fmt=formatting,
        with_errors=any(row.error is not None for row in content.layers),
        layer_plot=to_svg(
            partial(figures.parameters_by_layer, content.layers),
            "Parameters of every layer before and after, the numbers of the table above",
            *(WIDE, NARROW),
        )
        if content.layers
        else "",
        part_plot=to_svg(
            partial(figures.bytes_by_part, content.file_parts),
            f"Bytes by part of the file: {', '.join(part.name for part in content.file_parts)}",
            *(WIDE, NARROW),
        )
        if content.file_parts
        else "",
        curve_plots=[
            to_svg(
                partial(figures.training_curves, group, phases),
                f"{group.title} by epoch: {', '.join(curve.name for curve in group.curves)}",
                420,
            )
            for group in content.curves
        ],
        histogram_plots=[
            to_svg(
                partial(figures.weight_histogram, histogram),
                f"Weights of {histogram.layer} before and after quantization",
                300,
            )
            for histogram in content.histograms
        ],
    )


def write_page(content: ReportContent, path: str | os.PathLike[str]) -> None:
    """Write a report to an HTML file, atomically.

    Parameters
    ----------
    content : ReportContent
        The content.
    path : path-like
        The file to write or replace, for instance ``report.html``; its folder must exist.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "report.html")
    ...     write_page(ReportContent("LeNet-5"), path)
    ...     path.read_text(encoding="utf-8")[:15]
    '<!doctype html>'
    """
    write_atomically(path, render(content).encode())


def _headline(metrics: Mapping[str, Any]) -> list[_Headline]:
    """Return the large numbers at the top of the page."""
    numbers = {
        key: formatting.lookup(metrics, key)
        for key in (
            *("dense.params", "dense.bytes", "dense.error"),
            *("pressed.params", "file.bytes", "file.error"),
        )
    }
    size, unit = formatting.size(numbers["file.bytes"])
    errors_on = metrics.get("errors_on", "test")
    before = formatting.decimal(numbers["dense.error"], 2)
    after = formatting.decimal(numbers["file.error"], 2)
    dense, pressed = (formatting.count(numbers[f"{form}.params"]) for form in ("dense", "pressed"))
    return [
        _Headline(
            "File size", size, unit, f"dense: {formatting.count(numbers['dense.bytes'])} bytes"
        ),
        _Headline(
            "File ratio",
            formatting.ratio(formatting.lookup(metrics, "ratio.file")),
            "",
            f"4 bytes {formatting.TIMES} {dense} parameters / bytes of the file",
        ),
        _Headline(
            "Parameter ratio",
            formatting.ratio(formatting.lookup(metrics, "ratio.params")),
            "",
            f"{dense} dense / {pressed} stored",
        ),
        _Headline(
            f"{errors_on} error".capitalize(),
            f"{before} → {after}",
            "%",
            "dense → decoded from the file",
        ),
    ]
