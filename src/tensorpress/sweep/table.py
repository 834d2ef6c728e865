"""Tables of a sweep for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from tensorpress.report import formatting
from tensorpress.report.tables import plain_table

ON_FRONTIER = "◆"


def variant_table(content: Mapping[str, Any]) -> Table:
    """Return a table of variants, smallest file first, with marks on the frontier.

    Parameters
    ----------
    content
        The result of `tensorpress.sweep.sweep`.

    Examples
    --------
    >>> from rich.console import Console
    >>> one = {"name": "rank=4", "bytes": 1204, "validation_error": 1.5, "frontier": True}
    >>> table = variant_table({"variants": [one]})
    >>> Console(width=60).print(table)  # doctest: +NORMALIZE_WHITESPACE
                       validation
       variant  bytes   error (%)
    ─────────────────────────────
    ◆  rank=4   1,204        1.50
    """
    table = plain_table()
    table.add_column("")
    table.add_column("variant", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("validation\nerror (%)", justify="right", no_wrap=True)
    for variant in sort_variants(content):
        diverged = variant["bytes"] is None
        table.add_row(
            ON_FRONTIER if variant["frontier"] else "",
            Text(variant["name"]),
            "diverged" if diverged else formatting.count(variant["bytes"]),
            formatting.decimal(variant["validation_error"], 2),
            style="" if variant["frontier"] else "dim",
        )
    return table


def pick_table(content: Mapping[str, Any]) -> Table:
    """Return a table of picks with their test errors."""
    table = plain_table()
    for name in ("pick", "variant"):
        table.add_column(name, overflow="fold")
    for name in ("bytes", "validation\nerror (%)", "test\nerror (%)"):
        table.add_column(name, justify="right", no_wrap=True)
    for pick in content["picks"]:
        if pick["variant"] is None:
            table.add_row(pick["rule"], "no variant", "", "", "")
            continue
        table.add_row(
            pick["rule"],
            Text(pick["variant"]),
            formatting.count(pick["bytes"]),
            formatting.decimal(pick["validation_error"], 2),
            format_mean(pick["test_error"]),
        )
    return table


def sort_variants(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the variants sorted by bytes and then error; diverged variants come last."""

    def place(variant: Mapping[str, Any]) -> tuple[bool, float, float]:
        size, error = variant["bytes"], variant["validation_error"]
        return size is None, size or 0, error or 0

    return sorted(content["variants"], key=place)


def format_mean(errors: Mapping[str, Any]) -> str:
    """Return a mean as text, with the standard deviation if there are several runs.

    Examples
    --------
    >>> format_mean({"mean": 0.951, "sd": 0.04}), format_mean({"mean": 0.951, "sd": None})
    ('0.95 ± 0.04', '0.95')
    """
    text = formatting.decimal(errors["mean"], 2)
    return text if errors["sd"] is None else f"{text} ± {formatting.decimal(errors['sd'], 2)}"
