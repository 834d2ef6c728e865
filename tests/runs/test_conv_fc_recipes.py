"""The recipes of Garipov et al. (2016): the paper's counts, and equal parameters."""

from pathlib import Path

import pytest

from tensorpress.decompose import tt_params
from tensorpress.models.zoo import build
from tensorpress.planning import Plan
from tensorpress.runs.recipe import read_recipe
from tensorpress.runs.recipe_plan import plan_recipe
from tensorpress.schemes.tt_weight import paired_modes

RECIPES = Path(__file__).parents[2] / "recipes" / "cifar10"
NAIVE = ("conv-fc-tt-naive", "conv-fc-tt-naive-chain")


def plan_of(stem: str) -> Plan:
    return plan_recipe(build("conv-fc"), read_recipe(RECIPES / f"{stem}.yaml"))


@pytest.mark.parametrize(("first", "second", "ratio"), [(40, 30, 41.651), (20, 20, 82.868)])
def test_the_modes_give_the_papers_counts(first: int, second: int, ratio: float) -> None:
    """With the paper's ranks, of which some are above those of the unfoldings."""
    plan = plan_of("conv-fc-tt")
    ranks = {"classifier.0": (first,) * 3, "classifier.3": (second,) * 3}
    params = plan.dense_params
    for layer in plan.layers:
        modes = paired_modes(layer.shape, layer.options["row_modes"], layer.options["column_modes"])
        params += tt_params(modes, ranks.get(layer.name, (16,) * 3)) - layer.dense_params
    assert plan.dense_params == 13_934_538
    assert round(plan.dense_params / params, 3) == ratio


def test_ranks_of_the_unfoldings_take_fewer() -> None:
    plan = plan_of("conv-fc-tt")
    # 7·(9 + 16·16) fewer in each of five convolutions, 4·(24·20 + 16) in classifier.3.
    assert plan.params == 168_154 - 5 * 7 * (9 + 16 * 16) - 4 * (24 * 20 + 16) == 156_895
    assert plan_of("conv-fc-tt-scratch") == plan


@pytest.mark.parametrize("stem", NAIVE)
def test_trains_of_the_kernel_have_as_many_parameters_in_every_layer(stem: str) -> None:
    naive, proposed = plan_of(stem).layers, plan_of("conv-fc-tt").layers
    for one, other in zip(naive, proposed, strict=True):
        assert one.name == other.name
        assert other.factor_params <= one.factor_params < 1.05 * other.factor_params
