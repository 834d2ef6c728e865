"""Reports of runs as terminal tables and as one self-contained HTML page.

The page depends only on `ReportContent`, plain data that is stored as JSON, so that a report can
be rebuilt without repeating the run.
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
