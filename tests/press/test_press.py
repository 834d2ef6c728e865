from copy import deepcopy

import pytest
import torch
from torch import nn

from tensorpress import LayerPlan, ModelMismatchError, Plan, materialize, plan, press
from tensorpress.decompose import hooi
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import count_params
from tensorpress.models import zoo
from tensorpress.schemes.layer_spec import weight_spec
from tensorpress.schemes.parametrization import stored_factors
from tensorpress.schemes.random_init import initial_std
from tensorpress.schemes.tucker_weight import tucker_weight

SCHEMES = ["ada_tucker", "scada_tucker"]
INITS = ["decompose", "glorot", "kaiming"]


@pytest.fixture
def net():
    """Three kinds of layers, small enough to decompose in no time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(192, 20)
    ).eval()


@pytest.fixture
def x():
    return torch.randn(4, 3, 6, 6)


def tucker(name, shape, modes=None, ranks=(2, 2)):
    return LayerPlan(name, "ada_tucker", weight_spec(shape), ranks, {"modes": modes or shape})


def factors(module):
    held = stored_factors(module)
    return [getattr(held, f"original{i}") for i in range(len(tucker_weight(module).modes) + 1)]


def weight_errors(pressed, dense, names):
    """Relative error of every weight."""
    pairs = [(pressed.get_submodule(n).weight, dense.get_submodule(n).weight) for n in names]
    return [float(((a - b).norm() / b.norm()).detach()) for a, b in pairs]


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_copy_is_pressed_and_the_model_is_left_alone(net, x, scheme, init):
    before = deepcopy(net.state_dict())
    made = plan(net, scheme=scheme, budget="params=600")
    pressed = press(net, made, init=init)
    assert pressed(x).shape == (4, 20)
    assert type(net[4]) is nn.Linear
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert count_params(pressed) == made.params
    assert pressed[0].weight.shape == net[0].weight.shape


def test_inplace_presses_the_model_itself(net):
    pressed = press(net, plan(net, scheme="ada_tucker", budget="params=600"), inplace=True)
    assert pressed is net
    assert tucker_weight(net[4]) is not None


def test_the_start_is_the_best_decomposition(net):
    modes, ranks = (20, 12, 16), (4, 4, 4)
    made = Plan("ada_tucker", (tucker("4", (20, 192), modes, ranks),))
    pressed = press(net, made)
    expected = hooi(net[4].weight.reshape(modes), ranks).relative_error
    assert weight_errors(pressed, net, ["4"]) == pytest.approx([expected], rel=1e-4)


def test_full_ranks_keep_the_outputs(net, x):
    given = {
        "0": {"modes": "original", "ranks": [12, 3, 3, 3]},
        "4": {"modes": [20, 12, 16], "ranks": [20, 12, 16]},
    }
    pressed = press(net, plan(net, scheme="ada_tucker", overrides=given))
    torch.testing.assert_close(pressed(x), net(x), atol=1e-4, rtol=1e-4)


def test_a_shared_core_is_one_parameter(net, x):
    pressed = press(net, plan(net, scheme="scada_tucker", budget="params=600"))
    core = stored_factors(pressed[0]).original0
    assert stored_factors(pressed[4]).original0 is core
    assert sum(p is core for p in pressed.parameters()) == 1
    copy = deepcopy(pressed)
    assert stored_factors(copy[0]).original0 is stored_factors(copy[4]).original0
    assert stored_factors(copy[0]).original0 is not core
    pressed(x).sum().backward()
    assert core.grad is not None


@pytest.mark.parametrize("init", ["glorot", "kaiming"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_drawn_weights_have_the_initializers_deviation(net, scheme, init):
    pressed = press(net, plan(net, scheme=scheme, budget="params=600"), init=init)
    for name in ("0", "4"):
        weight = pressed.get_submodule(name).weight.detach()
        std = initial_std(weight, init)
        assert float(weight.square().mean().sqrt()) == pytest.approx(std, rel=1e-4)


def test_random_starts_follow_the_seed(net):
    made = plan(net, scheme="ada_tucker", budget="params=600")
    first, again, other = (press(net, made, init="glorot", seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(factors(first[4]), factors(again[4]), factors(other[4]), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    torch.manual_seed(123)
    assert torch.equal(press(net, made, init="glorot", seed=1)[4].weight, first[4].weight)


def test_layers_of_one_shape_draw_different_factors():
    net = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
    pressed = press(net, plan(net, scheme="ada_tucker", budget="params=900"), init="kaiming")
    assert not torch.equal(pressed[0].weight, pressed[1].weight)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_factors_of_a_layer_have_similar_sizes(net, scheme):
    pressed = press(net, plan(net, scheme=scheme, budget="params=600"))
    for name in ("0", "4"):
        sizes = [float(f.detach().square().mean().sqrt()) for f in factors(pressed[int(name)])[1:]]
        assert sizes == pytest.approx([sizes[0]] * len(sizes), rel=1e-3)


@pytest.mark.parametrize("init", INITS)
def test_a_diagonal_core_beside_a_shared_one(net, x, init):
    given = {
        "0": {"scheme": "ada_tucker", "modes": [12, 27], "ranks": 4, "diagonal": True},
        "4": {"modes": [60, 64], "ranks": 4},
    }
    made = plan(net, scheme="scada_tucker", overrides=given)
    pressed = press(net, made, init=init)
    assert count_params(pressed) == made.params
    assert factors(pressed[0])[0].shape == (4,)
    assert pressed(x).isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_materialized_weights_give_the_same_outputs(net, x, scheme):
    pressed = press(net, plan(net, scheme=scheme, budget="params=600"))
    dense = materialize(pressed)
    assert torch.equal(dense(x), pressed(x))
    assert dense.state_dict().keys() == net.state_dict().keys()
    assert type(dense[4]) is nn.Linear
    assert isinstance(dense[4].weight, nn.Parameter)
    assert tucker_weight(pressed[4]) is not None


def test_materializing_one_copy_leaves_the_others(net, x):
    pressed = press(net, plan(net, scheme="ada_tucker", budget="params=600"))
    copy = deepcopy(pressed)
    expected = pressed(x)
    materialize(pressed, inplace=True)
    assert torch.equal(pressed(x), expected)
    assert torch.equal(copy(x), expected)
    assert torch.equal(materialize(copy)(x), expected)
    copy[4].weight = torch.zeros(20, 192)
    assert float(copy[4].weight.detach().abs().max()) == 0
    assert torch.equal(pressed(x), expected)


def test_materializing_leaves_other_parametrizations(net):
    nn.utils.parametrize.register_parametrization(net[0], "bias", nn.Softplus())
    dense = materialize(press(net, plan(net, scheme="ada_tucker", budget="params=1000")))
    assert nn.utils.parametrize.is_parametrized(dense[0])
    assert not nn.utils.parametrize.is_parametrized(dense[4])


def test_a_materialized_model_can_be_pressed_again(net, x):
    made = plan(net, scheme="ada_tucker", budget="params=600")
    pressed = press(net, made)
    again = press(materialize(pressed), made)
    torch.testing.assert_close(again(x), pressed(x), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("init", INITS)
def test_weights_that_are_not_finite_name_the_layer(net, value, init):
    made = plan(net, scheme="ada_tucker", budget="params=600")
    net[4].weight.data[3, 2] = value
    with pytest.raises(InvalidArgumentError, match="layer '4': its weight has NaN or infinite"):
        press(net, made, init=init)


def test_an_unknown_start_names_the_known_ones(net):
    with pytest.raises(InvalidArgumentError, match=r"'hosvd': .*decompose, glorot, kaiming"):
        press(net, plan(net, scheme="ada_tucker", budget="params=600"), init="hosvd")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (tucker("9", (4, 6)), "'9', which this model does not have"),
        (tucker("4", (20, 100)), "a weight 20×192 .* expects 20×100"),
        (tucker("2", (20, 100)), "no weight"),
    ],
)
def test_a_plan_for_another_model_is_refused(net, layer, message):
    with pytest.raises(ModelMismatchError, match=message):
        press(net, Plan("ada_tucker", (layer,)), inplace=True)
    assert type(net[4]) is nn.Linear


def test_double_precision_models_stay_double(net):
    pressed = press(
        net.double(), plan(net, scheme="ada_tucker", budget="params=600"), init="glorot"
    )
    assert {p.dtype for p in pressed.parameters()} == {torch.float64}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_trained_weights_are_better_decomposed_than_drawn(data_root, scheme):
    model = zoo.build("lenet5")
    zoo.load_weights(model, data_root / "lenet_caffe" / "lenet5.safetensors")
    made = plan(model, scheme=scheme, budget="params=5000")
    names = [layer.name for layer in made.layers]
    fitted, drawn = (
        weight_errors(press(model, made, init=init), model, names)
        for init in ("decompose", "glorot")
    )
    assert all(fit < draw for fit, draw in zip(fitted, drawn, strict=True))
    assert max(fitted) < 1 < min(drawn)
