"""The shapes and counts of Table 13 of ADA-Tucker (Zhong et al. 2019), for WRN-28-10."""

from math import prod
from pathlib import Path

import pytest
import torch

from tensorpress.models.zoo import build
from tensorpress.planning import Plan
from tensorpress.runs.recipe import read_recipe
from tensorpress.runs.recipe_plan import plan_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "cifar10" / "wrn28-10-ada.yaml"
# Original, reshaped, core, and thousands of parameters before and after.
Row = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int]
NARROW: Row = ((160, 160, 3, 3), (24, 24, 20, 20), (12,) * 4, 230, 22)
MIDDLE: Row = ((320, 320, 3, 3), (32, 32, 30, 30), (16,) * 4, 921, 67)
WIDE: Row = ((640, 640, 3, 3), (48, 48, 40, 40), (20,) * 4, 3686, 163)
TABLE: list[Row] = [
    ((160, 16, 3, 3), (16, 16, 10, 9), (10, 10, 6, 6), 23, 4),
    *[NARROW] * 7,
    ((320, 160, 3, 3), (80, 80, 72), (36,) * 3, 460, 55),
    *[MIDDLE] * 7,
    ((640, 320, 3, 3), (40, 40, 36, 32), (18,) * 4, 1843, 108),
    *[WIDE] * 7,
]


@pytest.fixture(scope="module")
def plan() -> Plan:
    with torch.device("meta"):
        return plan_recipe(build("wrn28-10"), read_recipe(RECIPE))


def test_every_row_of_the_table(plan: Plan) -> None:
    assert len(plan.layers) == len(TABLE) == 24
    for layer, (shape, modes, core, before, after) in zip(plan.layers, TABLE, strict=True):
        assert layer.shape == shape
        pairs = zip(layer.modes, layer.ranks, strict=True)  # in an order that fits the weight
        assert sorted(pairs) == sorted(zip(modes, core, strict=True))
        assert layer.dense_params == prod(modes)
        # The table cuts some digits off and rounds others.
        assert layer.dense_params // 1000 == before
        assert abs(layer.factor_params / 1000 - after) < 1


def test_the_ratio_of_the_table_and_that_of_the_network(plan: Plan) -> None:
    factors = sum(layer.factor_params for layer in plan.layers)
    assert factors == 1_936_506
    assert round(plan.dense_params / factors, 1) == 18.8
    assert plan.params == 2_219_860
    assert round(plan.dense_params / plan.params, 1) == 16.4
