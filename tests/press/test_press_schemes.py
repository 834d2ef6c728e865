"""Models pressed by the schemes of the registry."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tensorpress import ModelMismatchError, Plan, materialize, plan, press
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import count_params
from tensorpress.planning import LayerPlan
from tensorpress.press.press import build_skeleton
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.parametrization import factorized_weight
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.schemes.random_init import initial_std
from tensorpress.schemes.registry import rank_schemes, scheme
from tensorpress.schemes.tucker_weight import tucker_weight

SCHEMES = [name for name in rank_schemes() if not name.startswith("cp_")]  # slower cp


def part(name: str) -> float:
    """The part of the largest ranks at which a layer is smaller than the dense one."""
    return 0.2 if name == "low_rank_sparse" else 0.5


INITS = ["decompose", "glorot", "kaiming"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2), nn.BatchNorm2d(12), nn.Flatten(), nn.Linear(48, 20)
    ).eval()


@pytest.fixture
def x():
    return torch.randn(4, 3, 6, 6)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", SCHEMES)
def test_a_copy_is_pressed_and_the_model_is_left_alone(net, x, name, init):
    net[3].bias.requires_grad_(False)
    net.train()
    net[3].eval()
    before = deepcopy(net.state_dict())
    made = plan(net, scheme=name, ranks=part(name))
    pressed = press(net, made, init=init)
    assert count_params(pressed) == made.params
    assert pressed(x).shape == (4, 20)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    assert type(net[0]) is nn.Conv2d
    for layer in made.layers:
        module = pressed.get_submodule(layer.name)
        assert module.training == (layer.name == "0")
        frozen = [p.shape for p in module.parameters() if not p.requires_grad]
        assert frozen == ([(20,)] if layer.name == "3" else [])


@pytest.mark.parametrize("name", SCHEMES)
def test_full_ranks_keep_the_outputs(net, x, name):
    given = {
        key: {"ranks": 1.0}
        for key in ("0", "3")
        if scheme(name).refusal(describe_layer(net.get_submodule(key))) is None
    }
    pressed = press(net, plan(net, scheme=name, overrides=given))
    torch.testing.assert_close(pressed(x), net(x), atol=1e-4, rtol=1e-4)


def test_errors_are_those_of_the_decomposition(net):
    pressed = press(net, plan(net, scheme="tucker2", ranks=0.4))
    for key in (0, 3):
        dense, result = net[key].weight.detach(), pressed[key].dense_weight()
        error = float((dense - result).norm() / dense.norm())
        assert pressed[key].relative_error == pytest.approx(error, abs=1e-6)
        assert 0 < error < 1


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(20, 20)
        self.again = self.first
        self.inner = nn.ModuleDict({"last": self.first, "other": nn.Linear(20, 20)})

    def forward(self, x):
        return self.inner["other"](self.inner["last"](self.again(self.first(x))))


@pytest.mark.parametrize("init", ["decompose", "kaiming"])
@pytest.mark.parametrize("name", ["channel_svd", "tt_weight"])
def test_a_module_held_in_several_places_stays_one(name, init):
    net = Branches()
    made = plan(net, scheme=name, ranks=0.2)
    assert [layer.name for layer in made.layers] == ["first", "inner.other"]
    pressed = press(net, made, init=init)
    assert pressed.first is pressed.again is pressed.inner["last"]
    assert pressed.first is not pressed.inner["other"]
    assert type(net.again) is nn.Linear
    assert count_params(pressed) == made.params
    pressed(torch.randn(3, 20)).sum().backward()
    assert all(p.grad is not None for p in pressed.parameters())


def test_inplace_presses_the_model_itself(net):
    assert press(net, plan(net, scheme="tucker2", ranks=0.5), inplace=True) is net
    assert isinstance(net[0], Pressed)


def test_a_model_that_is_one_layer():
    layer = nn.Linear(30, 20)
    made = plan(layer, scheme="channel_svd", ranks=4)
    pressed = press(layer, made)
    assert isinstance(pressed, Pressed)
    assert count_params(pressed) == made.params
    with pytest.raises(InvalidArgumentError, match="itself the layer to press"):
        press(layer, made, inplace=True)
    assert type(layer) is nn.Linear


LAYERS = {
    "conv": lambda: nn.Conv2d(6, 9, 3, groups=3),
    "linear": lambda: nn.Linear(40, 30, bias=False),
    "transposed": lambda: nn.ConvTranspose1d(8, 6, 4),
    "embedding": lambda: nn.Embedding(40, 12, padding_idx=3),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("init", ["glorot", "kaiming"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", SCHEMES)
def test_drawn_weights_have_the_initializers_deviation(name, kind, init, dtype):
    layer = LAYERS[kind]().to(dtype)
    spec = describe_layer(layer)
    if scheme(name).refusal(spec) is not None:
        pytest.skip("the scheme does not take it")
    made = plan(nn.Sequential(layer), scheme=name, overrides={"0": {"ranks": 0.7}})
    pressed = press(nn.Sequential(layer), made, init=init)[0]
    weight = scheme(name).compose(pressed).double()
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-3}[dtype]
    deviation = float(weight.square().mean().sqrt())
    assert deviation == pytest.approx(initial_std(layer.weight, init), rel=tolerance)
    assert {p.dtype for p in pressed.parameters()} == {dtype}
    if kind == "embedding" and isinstance(pressed, Pressed):
        assert not pressed(torch.tensor(3)).any()


def test_random_starts_follow_the_seed(net, x):
    made = plan(net, scheme="tucker2", ranks=0.5)
    first, again, other = (press(net, made, init="glorot", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))
    torch.manual_seed(123)
    assert torch.equal(press(net, made, init="glorot", seed=1)(x), first(x))
    assert torch.equal(first[0][2].bias, net[0].bias)


def test_layers_of_one_shape_draw_different_factors():
    net = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
    pressed = press(net, plan(net, scheme="channel_svd", ranks=4), init="kaiming")
    assert not torch.equal(pressed[0][0].weight, pressed[1][0].weight)


@pytest.mark.parametrize("init", INITS)
def test_schemes_of_both_kinds_in_one_model(net, x, init):
    given = {"3": {"scheme": "scada_tucker", "modes": [48, 20], "ranks": 6}}
    made = plan(net, scheme="tucker2", ranks=0.5, overrides=given)
    pressed = press(net, made, init=init)
    assert isinstance(pressed[0], Pressed)
    assert tucker_weight(pressed[3]) is not None
    assert pressed(x).isfinite().all()
    assert count_params(pressed) == made.params


def test_materialized_are_weights_and_not_chains(net, x):
    made = plan(net, scheme="tucker2", ranks=0.5, overrides={"3": {"scheme": "tt_weight"}})
    pressed = press(net, made)
    dense = materialize(pressed)
    assert torch.equal(dense(x), pressed(x))
    assert isinstance(dense[0], Pressed)
    assert type(dense[3]) is nn.Linear
    assert factorized_weight(pressed[3]) is not None


@pytest.mark.parametrize("name", [*SCHEMES, "ada_tucker", "scada_tucker"])
def test_a_skeleton_is_what_press_builds(net, name):
    how = {"budget": "params=700"} if "ada" in name else {"ranks": part(name)}
    net[3].weight.requires_grad_(False)
    made = plan(net, scheme=name, **how)
    pressed = press(net, made)
    nn.init.constant_(net[0].weight, float("nan"))  # not looked at
    with torch.device("meta"):
        nowhere = build_skeleton(deepcopy(net).to("meta"), made)
    for bare in (build_skeleton(net, made), nowhere):
        expected, result = (
            [(key, p.shape, p.requires_grad) for key, p in model.named_parameters()]
            for model in (pressed, bare)
        )
        assert result == expected
    in_place = ("tt_weight", "svd_weight", "ada_tucker", "scada_tucker")
    assert any(isinstance(layer, Pressed) for layer in net) == (name not in in_place)


@pytest.mark.parametrize("init", INITS)
def test_values_that_are_not_finite_name_the_layer(net, init):
    made = plan(net, scheme="tucker2", ranks=0.5)
    net[3].weight.data[3, 2] = float("nan")
    with pytest.raises(InvalidArgumentError, match="layer '3': its weight has NaN or infinite"):
        press(net, made, init=init)


def test_what_cannot_be_decomposed_names_the_layer(net):
    made = plan(net, scheme="tucker2", ranks=0.5)
    net[3].bias.data[3] = float("inf")
    with pytest.raises(InvalidArgumentError, match="layer '3': its bias has NaN or infinite"):
        press(net, made, inplace=True)
    assert type(net[0]) is nn.Conv2d
    with pytest.raises(InvalidArgumentError, match="layer '0' is on the meta device"):
        press(net.to("meta"), made)


def planned(name, ranks=(2, 2), **changed):
    spec = replace(describe_layer(nn.Conv2d(3, 12, 3, stride=2)), **changed)
    return Plan("tucker2", (LayerPlan(name, "tucker2", spec, ranks),))


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (planned("9"), ModelMismatchError, "'9', which this model does not have"),
        (planned("3"), ModelMismatchError, "a weight 20×48 .* expects 12×3×3×3"),
        (planned("0", stride=(1, 1)), ModelMismatchError, r"'0' has stride \(2, 2\) .* \(1, 1\)"),
        (planned("0", (2, 13)), InvalidArgumentError, r"'0': rank 2 of \(2, 13\)"),
        (planned("0", (2,)), InvalidArgumentError, "'0': expected 2 ranks"),
    ],
)
@pytest.mark.parametrize("init", INITS)
def test_a_plan_for_another_model_is_refused(net, made, error, message, init):
    with pytest.raises(error, match=message):
        press(net, made, inplace=True, init=init)
    assert type(net[0]) is nn.Conv2d


def test_a_layer_that_became_unpressable_is_refused(net):
    made = plan(net, scheme="tucker2", ranks=0.5)
    net[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ModelMismatchError, match=r"layer '0': .*hooks"):
        press(net, made)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", SCHEMES)
def test_on_a_gpu(net, x, name, init):
    net, x = net.cuda(), x.cuda()
    rule = 0.5 if name.startswith("cp") else "evbmf"  # CP's rank is of no matrix
    pressed = press(net, plan(net, scheme=name, ranks=rule), init=init)
    assert {p.device.type for p in pressed.parameters()} == {"cuda"}
    assert pressed(x).isfinite().all()
