"""Calling the command line as the shell does, without starting a process."""

import sys
from dataclasses import dataclass

import pytest

from tensorpress.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> Outcome:
    """Run ``tensorpress`` with some words and return what a user sees, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["tensorpress", *map(str, words)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    outcome = capsys.readouterr()
    return Outcome(code, outcome.out, outcome.err)
