"""What pressing copies, shares, frees and refuses to tear apart."""

import logging
import weakref
from copy import deepcopy

import pytest
import torch
from torch import nn

from tensorpress import LayerPlan, ModelMismatchError, Plan, plan, press
from tensorpress.errors import InvalidArgumentError
from tensorpress.press import parallel as one_by_one
from tensorpress.schemes.layer_spec import describe_layer, weight_spec
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.schemes.tucker_weight import tucker_weight

SCHEMES = ["channel_svd", "tt_weight", "ada_tucker"]
every_scheme = pytest.mark.parametrize("name", SCHEMES)


def stack(count=4):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(16, 16) for _ in range(count)))


def planned(net, name, only=None):
    """A plan for all layers, or for some."""
    names = only or [key for key, module in net.named_modules() if isinstance(module, nn.Linear)]
    return Plan(name, tuple(_layer(net, key, name) for key in names))


def tucker(key):
    return LayerPlan(key, "ada_tucker", weight_spec((16, 16)), (3, 3), {"modes": (16, 16)})


def _layer(net, key, name):
    if name == "ada_tucker":
        return tucker(key)
    return LayerPlan(key, name, describe_layer(net.get_submodule(key)), (3,))


@pytest.fixture
def alive(monkeypatch):
    """How many of the dense weights that it is told of are alive at every decomposition."""

    class Alive(list):
        def watch(self, net):
            self.refs = [weakref.ref(module.weight) for module in net if hasattr(module, "weight")]

    result = Alive()
    decomposed = one_by_one.decompose_weight  # type: ignore[attr-defined]

    def spy(layer, weight):
        result.append(sum(ref() is not None for ref in result.refs))
        return decomposed(layer, weight)

    monkeypatch.setattr(one_by_one, "decompose_weight", spy)
    return result


@every_scheme
def test_in_place_a_dense_weight_is_freed_before_the_next_is_decomposed(name, alive):
    net = stack()
    alive.watch(net)
    press(net, planned(net, name), inplace=True)
    assert alive == [4, 3, 2, 1]
    assert not any(ref() is not None for ref in alive.refs)


@every_scheme
def test_a_copy_does_not_copy_the_weights_that_are_replaced(name, monkeypatch):
    net, copied = stack(), []
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    parameter_copied = nn.Parameter.__deepcopy__

    def spy(self, memo):
        if id(self) not in memo:
            copied.append(names.get(id(self)))
        return parameter_copied(self, memo)

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", spy)
    press(net, planned(net, name, ["0", "1", "2"]))
    assert [name for name in copied if name and name.endswith("weight")] == ["3.weight"]


@every_scheme
def test_nothing_is_shared_with_the_model(name):
    net = stack()
    pressed = press(net, planned(net, name, ["0", "1"]))
    mine = {p.untyped_storage().data_ptr() for p in net.parameters()}
    assert not mine & {p.untyped_storage().data_ptr() for p in pressed.parameters()}


@every_scheme
def test_no_factor_keeps_a_larger_tensor_alive(name):
    pressed = press(stack(), planned(stack(), name))
    for parameter in pressed.parameters():
        assert parameter.is_contiguous()
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.other = (nn.Linear(16, 16) for _ in range(3))
        self.second.weight = self.first.weight
        self.norm = nn.LayerNorm(16)
        self.norm.bias = self.other.bias
        self.scale = nn.Parameter(torch.ones(16))
        self.same = self.scale
        self.kept = [self.other]

    def forward(self, x):
        return self.norm(self.other(self.second(self.first(x)) * self.scale))


def test_what_is_tied_stays_tied_in_the_copy():
    net = Tied()
    pressed = press(net, Plan("ada_tucker", (tucker("other"),)))
    assert pressed.second.weight is pressed.first.weight
    assert pressed.same is pressed.scale
    assert pressed.norm.bias is pressed.other.bias
    assert pressed.norm.bias is not net.norm.bias
    assert tucker_weight(pressed.other) is not None


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("first", "weight"), ("other", "bias")])
def test_what_another_layer_holds_as_well_is_not_torn_apart(name, kind, inplace):
    net = Tied()
    with pytest.raises(ModelMismatchError, match=f"layer '{name}' shares its {kind} with another"):
        press(net, planned(net, "channel_svd", [name]), inplace=inplace)
    assert type(net.first) is nn.Linear


def test_a_plan_that_names_one_layer_twice_is_refused():
    layer = nn.Linear(16, 16)
    net = nn.Sequential(layer, layer)
    with pytest.raises(
        ModelMismatchError, match="the plan's layers '0' and '1' are the same layer of the model"
    ):
        press(net, planned(net, "channel_svd", ["0", "1"]))


def test_nothing_is_touched_where_a_later_layer_cannot_be_pressed():
    net = stack()
    net[3].bias.data[2] = float("inf")
    before = deepcopy(net.state_dict())
    with pytest.raises(InvalidArgumentError, match="layer '3': its bias has NaN or infinite"):
        press(net, planned(net, "channel_svd"), inplace=True)
    assert not any(isinstance(module, Pressed) for module in net.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("inplace", [False, True])
def test_what_fails_midway_says_how_far_the_model_is_pressed(monkeypatch, inplace):
    net, decomposed = stack(), one_by_one.decompose_weight  # type: ignore[attr-defined]

    def failing(layer, weight):
        if layer.name == "2":
            raise InvalidArgumentError("it does not converge")
        return decomposed(layer, weight)

    monkeypatch.setattr(one_by_one, "decompose_weight", failing)
    told = r" \(2 of the 4 layers are already pressed\)" if inplace else ""
    with pytest.raises(InvalidArgumentError, match=f"layer '2': it does not converge{told}$"):
        press(net, planned(net, "channel_svd"), inplace=inplace)
    pressed = [isinstance(module, Pressed) for module in net]
    assert pressed == ([True, True, False, False] if inplace else [False] * 4)


def test_a_weight_in_factors_can_be_pressed_in_place_as_a_model_of_its_own():
    layer = nn.Linear(16, 16)
    assert press(layer, planned(layer, "tt_weight", [""]), inplace=True) is layer
    assert layer.weight.shape == (16, 16)


class Named(nn.Linear):
    label = "mine"


def test_a_layer_whose_weight_is_rebuilt_stays_what_it_is():
    net = nn.Sequential(Named(16, 16))
    net[0].label = "changed"
    for init in ("decompose", "kaiming"):
        pressed = press(net, planned(net, "tt_weight"), init=init)
        assert isinstance(pressed[0], Named)
        assert pressed[0].label == "changed"


def test_one_line_is_logged_and_nothing_printed_where_there_is_no_terminal(caplog, capsys):
    net = stack()
    with caplog.at_level(logging.INFO, logger="tensorpress.press"):
        press(net, plan(net, scheme="channel_svd", ranks=3))
    [line] = [r.getMessage() for r in caplog.records if r.name == "tensorpress.press"]
    assert line.startswith("pressed 4 layers in ")
    assert line.endswith("from 1,088 to 448 parameters")
    assert capsys.readouterr() == ("", "")
