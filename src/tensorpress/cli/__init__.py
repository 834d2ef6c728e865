"""The command line."""

from tensorpress.cli.app import main

__all__ = ["main"]
