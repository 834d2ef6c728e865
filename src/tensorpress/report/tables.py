"""The tables of a run's report for the terminal."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tensorpress.report import formatting
from tensorpress.report.content import LayerRow

START_ERROR = "pressed.start_error"

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def headline_cells(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the rows of the headline table as text: quantity, dense, pressed, file.

    Missing numbers are written "–"; cells without meaning, such as the MACs of a file, are empty.
    The error before training is included if weights were decomposed.

    Examples
    --------
    >>> headline_cells({"dense": {"bytes": 1724320}, "file": {"bytes": 2104}})[2]
    ('bytes', '1,724,320', '', '2,104')
    """

    def cell(key: str, kind: str) -> str:
        value = formatting.lookup(metrics, key) if key else None
        if not key:
            return ""
        if kind == "ratio":
            return formatting.ratio(value)
        return formatting.decimal(value, 2) if kind == "error" else formatting.count(value)

    rows = [
        ("parameters", "count", "dense.params", "pressed.params", ""),
        ("MACs", "count", "dense.macs", "pressed.macs", ""),
        ("bytes", "count", "dense.bytes", "", "file.bytes"),
        (
            f"{metrics.get('errors_on', 'test')} error (%)",
            "error",
            "dense.error",
            "pressed.error",
            "file.error",
        ),
        ("error before fine-tuning (%)", "error", "", START_ERROR, ""),
        ("parameter ratio", "ratio", "", "ratio.params", ""),
        ("MAC ratio", "ratio", "", "ratio.macs", ""),
        ("file ratio", "ratio", "", "", "ratio.file"),
    ]
    return [
        (label, cell(dense, kind), cell(pressed, kind), cell(file, kind))
        for label, kind, dense, pressed, file in rows
        if pressed != START_ERROR or formatting.lookup(metrics, START_ERROR) is not None
    ]


def headline_table(metrics: Mapping[str, Any]) -> Table:
    """Return a table of a network's metrics: dense, pressed, and decoded from the file.

    The parameter ratio is dense / stored parameters; the file ratio is 4 bytes × dense parameters /
    size of the file.

    Parameters
    ----------
    metrics : mapping
        Content of ``metrics.json``.

    Examples
    --------
    >>> from rich.console import Console
    >>> table = headline_table({"dense": {"params": 431_080}, "pressed": {"params": 2_980}})
    >>> Console(width=60).print(table)  # doctest: +ELLIPSIS +NORMALIZE_WHITESPACE
                       dense  pressed  file
     ...
    parameters       431,080    2,980
    ...
    """
    table = plain_table()
    table.add_column("")
    for name in ("dense", "pressed", "file"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in headline_cells(metrics):
        table.add_row(*row)
    return table


def layer_table(rows: Sequence[LayerRow]) -> Table:
    """Return a table of a network's layers, with totals, and notes as numbered footnotes.

    The table fits into 80 columns: long names break at their dots, and columns that are empty in
    every row are left out. Shapes, modes and bits per weight are on the page only.

    Parameters
    ----------
    rows : sequence of LayerRow
        The layers in the order of the network.

    Examples
    --------
    >>> from rich.console import Console
    >>> row = LayerRow("ip1", "Linear", "svd", (500, 800), (500, 800), (10,), 400_000, 13_000)
    >>> Console(width=80).print(layer_table([row]))  # doctest: +NORMALIZE_WHITESPACE
                            dense  pressed
    layer  scheme  ranks   params   params
    ──────────────────────────────────────
    ip1    svd     10     400,000   13,000
    <BLANKLINE>
    total                 400,000   13,000
    """
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    caption = "\n".join(f"{footnote_mark(notes, note)} {note}" for note in notes)
    table = plain_table(caption=Text(caption, style="dim") if notes else None)
    table.show_footer = bool(rows)
    columns = _numeric_columns(rows)
    table.add_column("layer", footer="total")
    table.add_column("scheme", overflow="fold")
    table.add_column("ranks", overflow="fold")
    for column in columns:
        table.add_column(column.header, footer=column.total, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        # Text, not str, in which rich would read square brackets as markup.
        table.add_row(
            Name(row.name + footnote_mark(notes, row.note)),
            Text(row.scheme),
            formatting.shape(row.ranks),
            *(column.cells[index] for column in columns),
            style="" if row.ranks else "dim",
        )
    return table


@dataclass(frozen=True)
class Name:
    """A qualified name, which breaks at its dots if the column is too narrow."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        pieces = self._pieces()
        longest = max(map(cell_len, pieces), default=0)
        return Measurement(longest, cell_len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for piece in self._pieces():
            if lines[-1] and cell_len(lines[-1] + piece) > options.max_width:
                lines.append("")
            lines[-1] += piece
        yield Text("\n".join(lines), overflow="fold")

    def _pieces(self) -> list[str]:
        return re.findall(r"[^.]*\.|[^.]+", self.text)


class _Column(NamedTuple):
    header: str
    total: str
    cells: list[str]


def plain_table(caption: Text | None = None) -> Table:
    """Return an empty table in the style of all tables of this package."""
    return Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
        footer_style="bold",
        caption=caption,
        caption_justify="left",
    )


def _numeric_columns(rows: Sequence[LayerRow]) -> list[_Column]:
    """Return the numeric columns that have a value in at least one row."""
    dense = [row.dense_params for row in rows]
    pressed = [row.pressed_params for row in rows]
    sizes = [row.file_bytes for row in rows]
    errors = [row.error for row in rows]
    count = formatting.count
    columns = [
        _Column("dense\nparams", count(sum(dense)), [count(value) for value in dense]),
        _Column("pressed\nparams", count(sum(pressed)), [count(value) for value in pressed]),
    ]
    known = [value for value in sizes if value is not None]
    if known:
        # No total if any layer has no value.
        total = sum(known) if len(known) == len(rows) else None
        columns.append(_Column("file\nbytes", count(total), [count(value) for value in sizes]))
    if any(value is not None for value in errors):
        cells = [formatting.decimal(value, 3) for value in errors]
        columns.append(_Column("rel.\nerror", "", cells))
    return columns


def footnote_mark(notes: Sequence[str], note: str) -> str:
    """Return the superscript number of a note, or nothing if the note is empty."""
    return str(notes.index(note) + 1).translate(_SUPERSCRIPTS) if note else ""
