"""The recipes of networks of torchvision: their layers, and the ratio of those with a budget."""

from pathlib import Path

import pytest
import torch

from tensorpress.models.classifier import build_classifier, check_classifier
from tensorpress.models.torchvision import mend_torchvision
from tensorpress.planning import Plan
from tensorpress.runs.recipe import Recipe, read_recipe
from tensorpress.runs.recipe_plan import plan_recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "cifar10"
NETWORKS = ("alexnet", "resnet18", "vgg16-fc", "shufflenet", "densenet161")
PARAMS = {
    "alexnet": 20_326_218,
    "resnet18": 11_181_642,
    "vgg16-fc": 33_646_666,
    "shufflenet": 1_263_854,
    "densenet161": 26_494_090,
}

mend_torchvision()
pytest.importorskip("torchvision")


def plan_of(recipe: Recipe, **changes: object) -> Plan:
    """Return the plan of a recipe whose press section is changed, for a network without values."""
    assert recipe.press is not None
    press = recipe.press.model_copy(update=changes)
    with torch.device("meta"):
        dense = build_classifier(recipe.network, 10).to("meta")
        return plan_recipe(dense, recipe.model_copy(update={"press": press}))


@pytest.mark.parametrize("stem", NETWORKS)
def test_a_third_of_the_parameters_is_left_at_most(stem: str) -> None:
    recipe = read_recipe(FOLDER / f"{stem}-3x.yaml")
    assert recipe.press is not None
    assert recipe.press.budget == "params=30%"
    plan = plan_of(recipe, scheme="tucker2", allocation="uniform")  # which needs no weights
    assert plan.dense_params == PARAMS[stem]
    assert 3.3 < plan.dense_params / plan.params < 3.5


@pytest.mark.parametrize("stem", NETWORKS)
def test_one_shot_presses_the_whole_network(stem: str) -> None:
    recipe = read_recipe(FOLDER / f"{stem}-evbmf.yaml")
    assert recipe.press is not None
    assert recipe.press.ranks == "evbmf"
    assert recipe.dense == read_recipe(FOLDER / f"{stem}-3x.yaml").dense
    plan = plan_of(recipe, ranks=1)
    first = plan.layers[0]
    assert (first.scheme, first.ranks) == ("tucker1_out", (1,))
    assert {layer.scheme for layer in plan.layers[1:]} <= {"tucker2", "tucker1_in"}
    reasons = [reason for name, reason in plan.unpressed_weights.items()]
    # The last layer is skipped; depthwise convolutions have no modes; a few are small already.
    assert sum("skipped" in reason for reason in reasons) == 1
    depthwise = sum("there are no modes to cut" in reason for reason in reasons)
    assert depthwise == (19 if stem == "shufflenet" else 0)
    assert len(reasons) == 1 + depthwise


@pytest.mark.parametrize("stem", ["alexnet", "vgg16-fc"])
def test_networks_for_small_images(stem: str) -> None:
    model = build_classifier(read_recipe(FOLDER / f"{stem}-3x.yaml").network, 10)
    check_classifier(model, (3, 32, 32), 10)
    positions: list[torch.Size] = []
    model.get_submodule("features").register_forward_hook(
        lambda _, __, output: positions.append(output.shape[2:])
    )
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert positions == [(1, 1)]
