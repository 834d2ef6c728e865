"""Recipes and sweeps by name, and the list of commands, on the command line."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome
from tensorpress.cli.app import COMMANDS


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Titles and folders of the runs that were asked for; none is carried out."""
    runs: list[tuple[str, Path]] = []

    def record(recipe: Any, folder: Path, **_: Any) -> None:
        runs.append((recipe.title, folder))

    monkeypatch.setattr("tensorpress.runs.run.run", record)
    monkeypatch.setattr("tensorpress.cli.run._print_result", lambda *_: None)
    return runs


def test_a_recipe_is_run_by_its_name(
    shell: Callable[..., Outcome], folders: list[tuple[str, Path]]
) -> None:
    assert shell("run", "lenet5-ada").code == 0
    assert shell("run", "lenet5-ada", "--out", "elsewhere").code == 0
    title = "LeNet-5 on MNIST, ADA-Tucker"
    assert folders == [(title, Path("runs/lenet5-ada")), (title, Path("elsewhere"))]


@pytest.mark.parametrize(("command", "kind"), [("run", "recipe"), ("sweep", "sweep")])
def test_unknown_names_are_refused(fails: Callable[..., str], command: str, kind: str) -> None:
    assert f"unknown {kind} 'lenet6'" in fails(command, "lenet6")


def test_recipes_and_sweeps_are_listed_outside_the_repository(run_json: Callable[..., Any]) -> None:
    kinds = run_json("list")
    assert kinds["recipes"]["lenet5-ada"] == "LeNet-5 on MNIST, ADA-Tucker"
    assert kinds["sweeps"]["resnet20-forms"] == "variants of resnet20-20x"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_that_of_its_module(
    shell: Callable[..., Outcome], command: str
) -> None:
    module, name = COMMANDS[command][0].split(":")
    function = getattr(import_module(f"tensorpress.cli.{module}"), name)
    outcome = shell(command, "--help")
    assert outcome.code == 0
    assert " ".join((function.__doc__ or "").split("\n")[0].split()) in " ".join(
        outcome.out.split()
    )
    assert f"tensorpress {command}" in outcome.out
