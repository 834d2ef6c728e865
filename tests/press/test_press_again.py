"""Pressing what is pressed already, and the way back."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from tensorpress import LayerPlan, ModelMismatchError, Plan, materialize, plan, press
from tensorpress.errors import InvalidArgumentError
from tensorpress.press.unpress import unpress
from tensorpress.schemes.layer_spec import describe_layer, weight_spec
from tensorpress.schemes.parametrization import factorized_weight
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.schemes.registry import rank_schemes, scheme

SCHEMES = [name for name in rank_schemes() if name not in ("cp_nls", "cp_corrected")]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 20)
    ).eval()


@pytest.fixture
def x():
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def tucker(name, ranks, scheme="ada_tucker"):
    shape, modes = {"0": ((12, 3, 3, 3), (12, 27)), "3": ((20, 48), (20, 48))}[name]
    return LayerPlan(name, scheme, weight_spec(shape), ranks, {"modes": modes})


def bent(pressed):
    """The model with other biases than the dense one, as training leaves it."""
    with torch.no_grad():
        for key, parameter in pressed.named_parameters():
            if key.endswith("bias"):
                parameter.add_(1.0)
    return pressed


@pytest.mark.parametrize("name", SCHEMES)
def test_unpressing_keeps_the_outputs_and_what_is_dense_has_no_trace(net, x, name):
    net.train()
    net[3].eval()
    net[3].weight.requires_grad_(False)
    pressed = bent(press(net, plan(net, scheme=name, ranks=0.4)))
    before = deepcopy(pressed.state_dict())
    dense = unpress(pressed)
    torch.testing.assert_close(dense(x), pressed(x), atol=1e-5, rtol=1e-4)
    assert [type(module) for module in dense] == [nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear]  # type: ignore[attr-defined]
    assert [module.training for module in dense] == [True, True, True, False]  # type: ignore[attr-defined]
    frozen = [key for key, p in dense.named_parameters() if not p.requires_grad]
    assert frozen == ["3.weight"]
    assert all(torch.equal(tensor, before[key]) for key, tensor in pressed.state_dict().items())


def test_unpressing_keeps_shared_layers_shared(x):
    layer = nn.Linear(20, 20)
    pressed = press(
        nn.Sequential(layer, nn.Sequential(layer)),
        Plan("channel_svd", (LayerPlan("0", "channel_svd", describe_layer(layer), (4,)),)),
    )
    dense = unpress(pressed)
    assert type(dense[0]) is nn.Linear
    assert dense[0] is dense[1][0]


def test_unpressing_in_place_and_a_model_that_is_one_layer(net):
    pressed = press(net, plan(net, scheme="tucker2", ranks=0.4))
    assert unpress(pressed, inplace=True) is pressed
    assert type(pressed[0]) is nn.Conv2d
    layer = press(net[3], plan(net[3], scheme="channel_svd", ranks=4))
    assert type(unpress(layer)) is nn.Linear
    with pytest.raises(InvalidArgumentError, match="itself the layer to unpress"):
        unpress(layer, inplace=True)


@pytest.mark.parametrize("inplace", [False, True])
def test_two_stages_of_a_matrix_are_as_good_as_one(net, x, inplace):
    once = bent(press(net, plan(net, scheme="channel_svd", ranks=4)))
    first = bent(press(net, plan(net, scheme="channel_svd", ranks=8)))
    twice = press(first, plan(net, scheme="channel_svd", ranks=4), inplace=inplace)
    torch.testing.assert_close(twice(x), once(x), atol=1e-5, rtol=1e-5)
    assert (twice is first) == inplace
    assert [twice[i].ranks for i in (0, 3)] == [(4,), (4,)]
    assert first[0].ranks == ((4,) if inplace else (8,))


@pytest.mark.parametrize("to", ["channel_svd", "tt_weight", "ada_tucker"])
@pytest.mark.parametrize("name", ["tucker2", "tensor_train", "tt_weight", "ada_tucker"])
def test_from_any_scheme_to_any_with_the_biases_of_now(net, x, name, to):
    def at(which, ranks):
        if which != "ada_tucker":
            return plan(net, scheme=which, ranks=ranks)
        given = int(20 * ranks)
        return Plan(which, (tucker("0", (given // 2,) * 2), tucker("3", (given,) * 2)))

    first = bent(press(net, at(name, 0.5)))
    dense = unpress(first)
    twice, expected = press(first, at(to, 0.3)), press(dense, at(to, 0.3))
    torch.testing.assert_close(twice(x), expected(x), atol=1e-4, rtol=1e-4)
    assert twice.state_dict().keys() == expected.state_dict().keys()
    for layer in (twice[0], twice[3]):
        held = layer if isinstance(layer, Pressed) else factorized_weight(layer)
        assert (held is not None) == (to != name or to != "channel_svd")


@pytest.mark.parametrize("name", ["tucker2", "tt_weight", "ada_tucker"])
def test_what_is_frozen_is_frozen_again(net, name):
    net[3].weight.requires_grad_(False)
    layers = (tucker("3", (8, 8)),)
    made = Plan(name, layers) if name == "ada_tucker" else plan(net, scheme=name, ranks=0.4)
    first = press(net, made)
    twice = press(first, Plan("channel_svd", (planned(net, "3", (4,)),)))
    frozen = [key for key, p in twice[3].named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight", "1.weight"]
    for dense in (unpress(first), materialize(first)):
        assert not any(
            p.requires_grad for key, p in dense[3].named_parameters() if "bias" not in key
        )
    assert type(unpress(first).get_parameter("3.weight")) is nn.Parameter


def test_random_starts_of_a_pressed_model_keep_its_biases(net):
    first = bent(press(net, plan(net, scheme="tucker2", ranks=0.8)))
    twice = press(first, plan(net, scheme="channel_svd", ranks=3), init="kaiming", seed=3)
    fresh = press(net, plan(net, scheme="channel_svd", ranks=3), init="kaiming", seed=3)
    assert torch.equal(twice[0][0].weight, fresh[0][0].weight)
    assert torch.equal(twice[0][1].bias, net[0].bias + 1)


def test_layers_that_a_plan_does_not_name_stay_as_they_are(net):
    first = press(net, plan(net, scheme="tucker2", ranks=0.8))
    only = Plan("channel_svd", (LayerPlan("3", "channel_svd", describe_layer(net[3]), (3,)),))
    twice = press(first, only)
    assert (twice[0].scheme, twice[3].scheme) == ("tucker2", "channel_svd")
    assert all(map(torch.equal, twice[0].parameters(), first[0].parameters()))
    assert twice[0][0].weight is not first[0][0].weight


def test_one_of_two_layers_leaves_a_shared_core(net, x):
    both = (tucker("0", (6, 6), "scada_tucker"), tucker("3", (6, 6), "scada_tucker"))
    first = press(net, Plan("scada_tucker", both))
    before = first(x)
    twice = press(first, Plan("channel_svd", (tucker("3", (3, 3)),)))
    with torch.no_grad():
        for parameter in twice.parameters():
            parameter.zero_()
    assert torch.equal(first(x), before)


@pytest.mark.parametrize("part", ["0", "0.1"])
@pytest.mark.parametrize("to", ["channel_svd", "ada_tucker"])
def test_hooks_on_a_pressed_layer_are_not_lost_silently(net, part, to):
    pressed = press(net, plan(net, scheme="tucker2", ranks=0.8))
    pressed.get_submodule(part).register_forward_hook(lambda *_: None)
    layer = tucker("0", (4, 4)) if to == "ada_tucker" else planned(net, "0", (4,))
    with pytest.raises(InvalidArgumentError, match="layer '0' has hooks, which would be lost"):
        press(pressed, Plan(to, (layer,)))
    with pytest.raises(InvalidArgumentError, match="layer '0' has hooks, which would be lost"):
        unpress(pressed)


def test_hooks_on_a_rebuilt_weight_stay_with_their_layer_or_are_named(net, x):
    calls = []
    pressed = press(net, plan(net, scheme="tt_weight", ranks=0.8))
    pressed[0].register_forward_hook(lambda *_: calls.append(1))
    press(pressed, Plan("ada_tucker", (tucker("0", (4, 4)),)))(x)
    unpress(pressed)(x)
    assert len(calls) == 2
    with pytest.raises(ModelMismatchError, match=r"layer '0': .*hooks"):
        press(pressed, Plan("channel_svd", (planned(net, "0", (4,)),)))


def planned(net, name, ranks):
    return LayerPlan(name, "channel_svd", describe_layer(net.get_submodule(name)), ranks)


def test_a_pressed_layer_that_is_another_one_is_refused(net):
    pressed = press(net, plan(net, scheme="tucker2", ranks=0.8))
    other = planned(nn.Sequential(nn.Conv2d(3, 12, 3)), "0", (4,))
    with pytest.raises(ModelMismatchError, match=r"'0' has stride \(2, 2\) .* expects \(1, 1\)"):
        press(pressed, Plan("channel_svd", (other,)))
    longer = LayerPlan("0", "channel_svd", describe_layer(nn.Linear(5, 6)), (2,))
    with pytest.raises(ModelMismatchError, match=r"'0' has a weight 12×3×3×3 .* expects 6×5"):
        press(pressed, Plan("channel_svd", (longer,)))


def test_the_inner_layers_of_a_pressed_one_are_not_pressed(net):
    pressed = press(net, plan(net, scheme="tucker2", ranks=0.8))
    inner = LayerPlan("0.1", "channel_svd", describe_layer(pressed[0][1]), (2,))
    with pytest.raises(ModelMismatchError, match=r"'0\.1' is part of the pressed layer '0'"):
        press(pressed, Plan("channel_svd", (inner,)))


@pytest.mark.parametrize("name", SCHEMES)
def test_factors_that_are_not_finite_name_the_layer(net, name):
    pressed = press(net, plan(net, scheme=name, ranks=0.2))
    keys = [key for key, _ in pressed.named_parameters() if key.startswith("0.")]
    pressed.get_parameter(next(key for key in keys if "bias" not in key)).data.fill_(float("nan"))
    largest = scheme("channel_svd").largest_ranks(describe_layer(net[0]))
    with pytest.raises(InvalidArgumentError, match="layer '0': its weight has NaN"):
        press(pressed, Plan("channel_svd", (planned(net, "0", largest),)))
