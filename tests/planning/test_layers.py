import pytest
import torch
from torch import nn

from tensorpress import ModelMismatchError, plan, press
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import count_params
from tensorpress.models import zoo
from tensorpress.planning import plan_from_model
from tensorpress.schemes.parametrization import stored_factors


class Language(nn.Module):
    """An embedding tied to the output layer, as in many language models."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(100, 16)
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, 100)
        self.head.weight = self.embedding.weight


def test_tied_weights_stay_dense_and_tied():
    net = Language()
    made = plan(net, scheme="ada_tucker", budget="params=2000")
    assert [layer.name for layer in made.layers] == ["body"]
    assert made.unpressed["head"] == "its weight is tied to 'embedding.weight'"
    assert made.unpressed["embedding"] == "its weight is tied to 'head.weight'"
    pressed = press(net, made)
    assert pressed.head.weight is pressed.embedding.weight
    assert count_params(pressed) == made.params


def test_a_module_used_twice_is_pressed_once():
    layer = nn.Linear(40, 40)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    made = plan(net, scheme="ada_tucker", budget="params=600")
    assert [p.name for p in made.layers] == ["0"]
    pressed = press(net, made)
    assert pressed[0] is pressed[2]
    assert count_params(pressed) == made.params


def test_layers_without_a_matrix_are_not_listed():
    net = nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30), nn.PReLU(), nn.LayerNorm(30))
    assert not plan(net, scheme="ada_tucker", budget="params=800").unpressed_weights


def test_other_dtypes_stay_dense_with_the_reason():
    net = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 30, dtype=torch.complex64))
    assert plan(net, scheme="ada_tucker", budget="params=1500").unpressed_weights == {
        "1": "its weight is torch.complex64, not floating point"
    }


def test_parametrized_layers_stay_as_they_are_with_the_reason():
    net = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 30))
    nn.utils.parametrize.register_parametrization(net[1], "weight", nn.Tanh())
    made = plan(net, scheme="ada_tucker", budget="params=1800")
    assert made.unpressed_weights == {"1": "its weight is parametrized"}
    assert count_params(press(net, made)) == made.params


def test_layers_without_a_shape_are_refused():
    with pytest.raises(InvalidArgumentError, match="'0' has no shape yet"):
        plan(nn.Sequential(nn.LazyLinear(3)), scheme="ada_tucker", budget="params=10")


@pytest.mark.parametrize("scheme", ["ada_tucker", "scada_tucker"])
@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_a_plan_is_read_back_from_the_model(name, scheme):
    model = zoo.build(name)
    made = plan(model, scheme=scheme, budget=f"params={count_params(model) // 20}")
    read = plan_from_model(press(model, made, init="glorot"))
    assert (read.scheme, read.layers, read.other_params) == (scheme, made.layers, made.other_params)
    assert read.params == made.params


def test_a_plan_with_a_diagonal_core_is_read_back():
    model = zoo.build("lenet5")
    given = {"modes": "original", "ranks": 8, "diagonal": True}
    made = plan(model, scheme="ada_tucker", overrides={"conv2": given})
    assert plan_from_model(press(model, made)).layers == made.layers


def test_one_layer_alone_may_hold_a_shared_core():
    net = nn.Sequential(nn.Linear(40, 30))
    made = plan(net, scheme="scada_tucker", overrides={"0": {"modes": [40, 30], "ranks": 4}})
    assert plan_from_model(press(net, made)).layers == made.layers


def test_shared_cores_that_came_apart_are_refused():
    net = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 30))
    pressed = press(net, plan(net, scheme="scada_tucker", budget="params=700"))
    held = stored_factors(pressed[1])
    held.original0 = nn.Parameter(held.original0.detach().clone())
    with pytest.raises(ModelMismatchError, match="have 2 different ones"):
        plan_from_model(pressed)


def test_a_plan_prints_every_layer_and_the_total():
    made = plan(zoo.build("lenet5"), scheme="scada_tucker", budget="params=5000", skip=["conv1"])
    text = str(made)
    for word in ("conv2", "ip1", "ip2", "shared core", f"{made.params:,}", "431,080"):
        assert word in text
    assert "kept dense: conv1 (skipped by 'conv1')" in text
