"""The recipes that the committed results came from can be carried out by today's code."""

import json
from pathlib import Path
from typing import Any

import pytest

from tensorpress.runs.recipe import Recipe
from tensorpress.sweep.variants import apply_settings
from tensorpress.utils.config_parsing import parse_yaml, validate

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "results").glob("*/seed*/metrics.json"))
SWEEPS = sorted((ROOT / "results").glob("*/sweep.json"))


def name_of(path: Path) -> str:
    return str(path.parent.relative_to(ROOT / "results"))


def test_there_are_results() -> None:
    assert RUNS
    assert SWEEPS


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_the_recipe_of_a_run_parses(path: Path) -> None:
    content = json.loads(path.read_text())["recipe"]
    recipe = validate(Recipe, content, "recipe")
    assert validate(Recipe, parse_yaml(recipe.to_yaml()), "recipe") == recipe


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_the_variants_of_a_sweep_parse(path: Path) -> None:
    base = recipe_of_sweep(ROOT / "sweeps" / f"{path.parent.name}.yaml")
    for variant in json.loads(path.read_text())["variants"]:
        validate(Recipe, apply_settings(base, variant["settings"]), "recipe")


def recipe_of_sweep(file: Path) -> Any:
    recipe = parse_yaml(file.read_text())["recipe"]
    return parse_yaml((file.parent / recipe).read_text()) if isinstance(recipe, str) else recipe
