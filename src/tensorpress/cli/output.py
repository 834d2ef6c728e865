"""Printing of lines that are not wrapped, tables and JSON."""

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

UNBROKEN = 200


def print_line(line: str) -> None:
    """Print a line without wrapping."""
    _console().print(line, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table in the width of the terminal, or without a limit elsewhere."""
    console = _console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNBROKEN
    console.print(table)


def print_error(message: str) -> None:
    """Print an error to stderr."""
    console = Console(stderr=True, highlight=False, emoji=False)
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def print_json(content: Any) -> None:
    """Print plain data as JSON."""
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _console() -> Console:
    """Return a console that prints text unchanged, without markup or emoji codes."""
    return Console(markup=False, highlight=False, emoji=False)
