"""Printing: lines that are not wrapped, tables, JSON."""

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

UNBROKEN = 200


def print_line(line: str) -> None:
    """Print a line as it is, however long."""
    _console().print(line, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; elsewhere nothing needs to be broken."""
    console = _console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNBROKEN
    console.print(table)


def print_error(message: str) -> None:
    """Print what went wrong to stderr."""
    console = Console(stderr=True, highlight=False, emoji=False)
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def print_json(content: Any) -> None:
    """Print plain data as JSON."""
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _console() -> Console:
    """Return a console that changes nothing: no markup, no :x: for a cross."""
    return Console(markup=False, highlight=False, emoji=False)
