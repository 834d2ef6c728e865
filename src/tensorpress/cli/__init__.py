"""The command line: parses, calls, prints."""

from tensorpress.cli.app import main

__all__ = ["main"]
