import re
import shlex
from pathlib import Path

import pytest
import typer

from tensorpress.cli.app import COMMANDS, app

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
CALLS = [
    words[words.index("tensorpress") + 1 :]
    for block in BLOCKS
    for words in (shlex.split(line, comments=True) for line in block.splitlines())
]


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_every_line_of_the_page_can_be_parsed(words: list[str]) -> None:
    name, *arguments = words
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)


def test_the_page_has_every_command() -> None:
    assert {words[0] for words in CALLS} == set(COMMANDS)
