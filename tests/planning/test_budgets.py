import re

import pytest
import torch
from torch import nn

from tensorpress import plan, press, press_layer
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import count_params
from tensorpress.models import zoo

SCHEMES = ["ada_tucker", "scada_tucker"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ratio", [3, 40])
@pytest.mark.parametrize("name", ["lenet5", "lenet300100", "cifar-cnn", "resnet20"])
def test_budgets_are_met_and_used(name, ratio, scheme):
    model = zoo.build(name)
    budget = count_params(model) // ratio
    made = plan(model, scheme=scheme, budget=f"params={budget}")
    assert 0.8 * budget <= made.params <= budget
    assert made.dense_params == count_params(model)
    assert all(p.shape == model.get_submodule(p.name).weight.shape for p in made.layers)
    assert count_params(press(model, made, init="glorot")) == made.params
    assert plan(model, scheme=scheme, budget=f"params={budget}") == made


@pytest.mark.parametrize("scheme", SCHEMES)
def test_more_parameters_are_never_refused(scheme):
    model = zoo.build("lenet5")
    for budget in (2000, 100_000, count_params(model), 10 * count_params(model)):
        assert plan(model, scheme=scheme, budget=f"params={budget}").params <= budget


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("budget", [1, 700])
def test_an_impossible_budget_says_what_is_missing(budget, scheme):
    model = zoo.build("lenet5")
    with pytest.raises(InvalidArgumentError, match="need at least") as caught:
        plan(model, scheme=scheme, budget=f"params={budget}")
    missing = int(re.search(r"raise the budget by at least (\d+)", str(caught.value))[1])
    assert (
        plan(model, scheme=scheme, budget=f"params={budget + missing}").params == budget + missing
    )
    with pytest.raises(InvalidArgumentError, match="raise the budget by at least 1"):
        plan(model, scheme=scheme, budget=f"params={budget + missing - 1}")


def test_each_layer_of_a_core_of_its_own_has_ranks_within_its_modes():
    for layer in plan(zoo.build("resnet20"), scheme="ada_tucker", budget="params=20_000").layers:
        assert all(k <= n for k, n in zip(layer.ranks, layer.modes, strict=True))


def test_a_shared_core_has_one_shape():
    made = plan(zoo.build("resnet20"), scheme="scada_tucker", budget="params=20_000")
    assert {layer.ranks for layer in made.layers} == {made.shared_core}
    assert {layer.scheme for layer in made.layers} == {"scada_tucker"}


def test_skipped_layers_keep_their_parameters():
    model = zoo.build("lenet5")
    made = plan(model, scheme="ada_tucker", budget="params=40_000", skip=["conv*"])
    assert [layer.name for layer in made.layers] == ["ip1", "ip2"]
    assert made.unpressed_weights == {"conv1": "skipped by 'conv*'", "conv2": "skipped by 'conv*'"}
    assert made.other_params == 25_500 + 580
    assert made.params <= 40_000


def test_weights_too_small_to_gain_stay_dense():
    net = nn.Sequential(nn.Linear(60, 50), nn.Linear(2, 2), nn.Linear(13, 1))
    made = plan(net, scheme="ada_tucker", budget="params=800")
    assert [layer.name for layer in made.layers] == ["0"]
    assert made.unpressed_weights == dict.fromkeys(["1", "2"], "too small to be made smaller")


def test_a_bare_layer_is_a_model():
    layer = nn.Linear(80, 50)
    made = plan(layer, scheme="ada_tucker", budget="params=700")
    assert [p.name for p in made.layers] == [""]
    assert count_params(press(layer, made)) == made.params <= 700


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), "no layer that can be pressed$"),
        (nn.Sequential(nn.Linear(2, 2)), "too small"),
        (press_layer(nn.Linear(80, 50), "tt_weight", 2), "pressed already"),
    ],
)
def test_nothing_to_press_is_an_error_with_the_reasons(net, reason, scheme):
    with pytest.raises(InvalidArgumentError, match=reason):
        plan(net, scheme=scheme, budget="params=10_000")


@pytest.mark.parametrize("given", [{}, {"budget": "params=9", "overrides": {}}])
def test_either_a_budget_or_overrides(given):
    with pytest.raises(InvalidArgumentError, match="either a budget, or overrides"):
        plan(nn.Linear(4, 4), scheme="ada_tucker", **given)


def test_an_unknown_scheme_names_the_nearest():
    with pytest.raises(InvalidArgumentError, match="'ada_tuker': did you mean 'ada_tucker'"):
        plan(nn.Linear(4, 4), scheme="ada_tuker", budget="params=9")


def test_planning_does_not_touch_the_model():
    model = zoo.build("lenet5")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan(model, scheme="ada_tucker", budget="params=3000")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
