"""Reports of runs, as terminal tables and as one self-contained HTML page.

The page is a pure function of `ReportContent`, plain data that can be written to and read from
JSON, so that a report can be rebuilt without the run that made it.
"""

from tensorpress.report.content import Curve, Curves, FilePart, Histogram, LayerRow, ReportContent
from tensorpress.report.page import render, write_page
from tensorpress.report.tables import headline_table, layer_table

__all__ = [
    "Curve",
    "Curves",
    "FilePart",
    "Histogram",
    "LayerRow",
    "ReportContent",
    "headline_table",
    "layer_table",
    "render",
    "write_page",
]
