"""Budgets of parameters, bytes and MACs over a whole model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorpress import plan, press
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import count_macs, count_params
from tensorpress.models import zoo
from tensorpress.planning.budget import parse_budget
from tensorpress.planning.scores import Scored, Scores

IMAGE = torch.zeros(1, 3, 32, 32)
RULES = ["error", "energy", "uniform", "evbmf"]


@pytest.fixture(scope="module")
def net():
    """A network whose kernels have a spectrum, each another."""
    torch.manual_seed(0)
    model = zoo.build("resnet20")
    for place, module in enumerate(model.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear) and place % 3:
            weight = module.weight.detach()
            left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
            decay = torch.arange(1, len(values) + 1) ** -(0.3 + 0.1 * (place % 7))
            module.weight.data = (left * (values * decay) @ right).reshape(weight.shape)
    return model.eval()


def held(model):
    return sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["params", "bytes", "macs"])
def test_the_model_has_what_the_budget_allows(net, rule, kind):
    made = plan(net, IMAGE, scheme="tucker2", allocation=rule, budget=f"{kind}=50%")
    pressed = press(net, made, init="glorot")
    result = {"params": count_params(pressed), "bytes": held(pressed)}
    dense = {"params": count_params(net), "bytes": held(net), "macs": count_macs(net, [IMAGE])}
    result["macs"] = count_macs(pressed, [IMAGE])
    assert (made.params, made.bytes, made.macs) == tuple(result.values())
    assert (made.dense_params, made.dense_bytes, made.dense_macs) == tuple(dense.values())
    # One number for all layers moves all layers of a kind at once.
    nearest = 0.45 if rule in ("uniform", "evbmf") else 0.49
    assert nearest * dense[kind] <= result[kind] <= 0.5 * dense[kind]


@settings(max_examples=6)
@given(share=st.integers(20, 90), kind=st.sampled_from(["params", "macs"]))
def test_budgets_are_never_exceeded_and_nearly_reached(net, share, kind):
    made = plan(net, IMAGE, scheme="channel_svd", budget=f"{kind}={share}%")
    reached = getattr(made, kind) / getattr(made, f"dense_{kind}")
    assert 0.98 * share / 100 <= reached <= share / 100


def total_error(made, net):
    """Of all layers that were compared, also those left dense."""
    return sum(layer.error**2 for layer in made.layers)


def test_the_least_error_is_less_than_that_of_one_fraction(net):
    best = plan(net, IMAGE, scheme="channel_svd", budget="macs=50%")
    uniform = plan(net, IMAGE, scheme="channel_svd", budget="macs=50%", allocation="uniform")
    errors = {}
    for name, made in (("best", best), ("uniform", uniform)):
        pressed = press(net, made)
        errors[name] = sum(
            pressed.get_submodule(layer.name).relative_error ** 2 for layer in made.layers
        )
    assert errors["best"] < 0.8 * errors["uniform"]
    assert errors["best"] == pytest.approx(total_error(best, net), rel=1e-4)


def test_every_layer_gets_the_best_of_the_schemes(net):
    auto = plan(net, IMAGE, budget="macs=50%")
    single = [
        plan(net, IMAGE, scheme=name, budget="macs=50%")
        for name in ("tucker2", "channel_svd", "spatial_svd")
    ]
    assert auto.scheme == "auto"
    assert len({layer.scheme for layer in auto.layers}) > 1
    assert total_error(auto, net) <= min(total_error(made, net) for made in single) + 1e-9
    two = plan(net, IMAGE, scheme=["spatial_svd", "channel_svd"], budget="macs=50%")
    assert {layer.scheme for layer in two.layers} <= {"spatial_svd", "channel_svd"}
    assert press(net, auto)(IMAGE).shape == (1, 10)


def test_ranks_are_what_the_hardware_likes(net):
    made = plan(net, IMAGE, scheme="tucker2", budget="macs=50%", round_to=8)
    assert all(rank % 8 == 0 for layer in made.layers for rank in layer.ranks)
    fraction = plan(net, scheme="channel_svd", ranks=0.4, round_to=16)
    assert {rank for layer in fraction.layers for rank in layer.ranks} <= {16, 32, 10}
    for bad in (0, -8, 1.5, True):
        with pytest.raises(InvalidArgumentError, match="round_to"):
            plan(net, scheme="tucker2", ranks=0.4, round_to=bad)


def test_overrides_within_a_budget(net):
    overrides = {"layer1.*": {"scheme": "spatial_svd"}, "layer2.0.conv1": {"ranks": 5}}
    made = plan(net, IMAGE, scheme="channel_svd", budget="params=60%", overrides=overrides)
    by_name = {layer.name: layer for layer in made.layers}
    assert by_name["layer2.0.conv1"].ranks == (5,)
    assert {x.scheme for n, x in by_name.items() if n.startswith("layer1.")} <= {"spatial_svd"}
    assert 0.58 <= made.params / made.dense_params <= 0.6


def test_targets_and_patterns(net):
    made = plan(net, IMAGE, budget="macs=80%", targets=[r"re:layer[12]\..*"], skip=["*.conv2"])
    assert all(layer.name.startswith(("layer1", "layer2")) for layer in made.layers)
    assert not any(layer.name.endswith("conv2") for layer in made.layers)
    assert made.unpressed["linear"] == "not among the targets"
    assert made.unpressed["layer1.0.conv2"] == "skipped by '*.conv2'"
    for wrong, message in [
        ({"targets": ["layer9*"]}, "unknown layer or pattern 'layer9\\*'"),
        ({"targets": ["re:("]}, "is not a valid regular expression"),
        ({"skip": ["layer1.0.conv3"]}, "did you mean 'layer1.0.conv"),
        ({"targets": "linear"}, "targets must be a list"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            plan(net, IMAGE, budget="macs=80%", **wrong)


def test_layers_that_are_not_called_are_left_alone_for_macs():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.used(x)

    made = plan(Idle(), torch.zeros(1, 64), scheme="channel_svd", budget="macs=50%")
    assert [layer.name for layer in made.layers] == ["used"]
    assert "no ranks make it" in made.unpressed["idle"]


def test_a_layer_called_twice_costs_twice():
    layer = nn.Linear(64, 64, bias=False)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    made = plan(net, torch.zeros(3, 64), scheme="channel_svd", ranks=8)
    assert (made.dense_macs, made.macs) == (2 * 64 * 64, 2 * 2 * 8 * 64)
    assert made.macs == count_macs(press(net, made), [torch.zeros(3, 64)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": "macs=0.1%"}, r"macs=0.1% is out of reach: .* of 40,551,040 MACs"),
        ({"budget": "params=9M"}, "params=9000000 is met already: the dense model has 269,722 pa"),
        ({"budget": "latency=50"}, "one of the units %, us, ms, s"),
        (
            {"budget": "macs=50%", "ranks": 0.5},
            "either ranks .0.5. or a budget .* is the allocation",
        ),
        ({"budget": "macs=50%", "ranks": "energy"}, "either ranks .'energy'. or a budget"),
        ({"budget": "macs=50%", "allocation": "evbfm"}, "unknown allocation 'evbfm': did you"),
        ({"budget": "macs=50%", "scheme": ["cp", "tuker2"]}, "unknown scheme 'tuker2'"),
        ({"budget": "macs=50%", "allocation": 0.5}, "allocation must be scores or one of error"),
        ({"budget": "macs=50%", "allocation": "uniform"}, "name one scheme"),
        ({"budget": "macs=50%", "scheme": "ada_tucker"}, "rebuilding weights saves no macs"),
        (
            {"budget": "macs=50%", "overrides": {"conv1": {"ranks": 3}}},
            "must name one of the schemes",
        ),
        ({"ranks": 0.5}, "name one scheme, or give a budget"),
        ({"scheme": []}, "scheme is empty"),
        ({"allocation": "error", "ranks": 0.5, "scheme": "cp"}, "give a budget"),
        ({"ranks": Scores("loss", 0.0, {}), "scheme": "cp"}, "ranks must be an int, a float"),
        (
            {"budget": "params=50%", "allocation": "error", "scheme": "ada_tucker"},
            "ada_tucker takes no allocation",
        ),
    ],
)
def test_what_cannot_be_planned(net, given, message):
    with pytest.raises(InvalidArgumentError, match=message):
        plan(net, IMAGE, **given)


def test_macs_need_inputs(net):
    with pytest.raises(InvalidArgumentError, match="a budget of macs needs example inputs"):
        plan(net, budget="macs=50%")
    with pytest.raises(InvalidArgumentError, match="on the example inputs"):
        plan(net, torch.zeros(1, 4, 32, 32), budget="macs=50%")


def test_scores_decide_where_the_budget_goes(net):
    """A layer that is said to be insensitive is pressed, its equal is not."""
    options = [(r, 0.01 * (9 - r)) for r in range(1, 9)]
    layers = {
        name: tuple(Scored("channel_svd", (r,), weight * s, measured=True) for r, s in options)
        for name, weight in (("layer1.0.conv1", 1.0), ("layer1.0.conv2", 1e-3))
    }
    scores = Scores("loss", 0.3, layers)
    made = plan(net, IMAGE, scheme="channel_svd", allocation=scores, budget="macs=96%")
    assert [layer.name for layer in made.layers] == ["layer1.0.conv2"]
    assert "no ranks" in made.unpressed["layer2.0.conv1"]


def test_weights_come_from_where_they_are_said_to(net):
    with torch.device("meta"):
        empty, image = zoo.build("resnet20"), torch.zeros(1, 3, 32, 32)
    asked = []

    def weight(name):
        asked.append(name)
        return net.get_submodule(name).weight.detach()

    made = plan(empty, image, scheme="channel_svd", budget="macs=50%", weights=weight)
    assert made == plan(net, IMAGE, scheme="channel_svd", budget="macs=50%")
    assert len(asked) == len(set(asked)) == 20
    with pytest.raises(InvalidArgumentError, match=r"layer 'conv1': .*meta device"):
        plan(empty, image, scheme="channel_svd", budget="macs=50%")


@given(st.floats(1, 1e12), st.sampled_from(["params", "bytes", "macs"]))
def test_budgets_are_printed_as_they_are_read(amount, kind):
    budget = parse_budget(f"{kind}={amount:.3f}")
    again = parse_budget(str(budget))
    assert again.kind == kind
    assert again.amount == pytest.approx(budget.amount, rel=1e-6)


@pytest.mark.parametrize("runtime", ["", "@onnxruntime", "@openvino"])
def test_recurrent_weights_alone_cannot_meet_a_budget_of_latency(runtime):
    pytest.importorskip(runtime.removeprefix("@") or "torch")
    with pytest.raises(InvalidArgumentError, match="latency of 60 % cannot be reached"):
        plan(nn.LSTM(4, 8), torch.ones(3, 1, 4), budget=f"latency=60%{runtime}")


def test_the_case_of_a_unit_does_not_matter():
    assert parse_budget("bytes=6KB") == parse_budget("bytes=6kB")
    assert parse_budget("latency=2MS") == parse_budget("latency=2ms")
