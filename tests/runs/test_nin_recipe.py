"""Network in Network, 2.77 times smaller by low rank + sparse."""

from pathlib import Path

import torch

from tensorpress.models.zoo import build
from tensorpress.runs.recipe import read_recipe
from tensorpress.runs.recipe_plan import plan_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "cifar10" / "nin-sparse.yaml"


def test_the_ratio_is_that_of_the_paper() -> None:
    with torch.device("meta"):
        plan = plan_recipe(build("nin"), read_recipe(RECIPE))
    assert plan.dense_params == 966_986
    assert round(plan.dense_params / plan.params, 2) == 2.77
    assert {layer.scheme for layer in plan.layers} == {"low_rank_sparse"}
    assert len(plan.layers) == 7
    stored = 0
    for layer in plan.layers:
        outputs, inputs, *kernel = layer.shape
        channels, rank = layer.ranks
        size = kernel[0] * kernel[1]
        # A has some of the input channels, B = U V: out × r and r × (in · kernel).
        stored += outputs * channels * size + rank * (outputs + inputs * size)
    biases = 6 * 192 + 160 + 96 + 10
    assert plan.params == stored + 3 * 25 * 192 + 192 * 10 + biases
