"""Parameters of modules that no layer can replace are rebuilt from factors."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import tensorpress as tp
from tensorpress.measure.cost import count_params
from tensorpress.planning import plan_from_model
from tensorpress.planning.plan_table import VECTOR
from tensorpress.press.zero_ranks import drop_zero_ranks

RECURRENT = {
    "LSTM": nn.LSTM(6, 8),
    "two layers, two ways": nn.LSTM(6, 8, 2, bidirectional=True, dropout=0.2),
    "projections": nn.LSTM(6, 8, 2, proj_size=5, batch_first=True, bias=False),
    "GRU": nn.GRU(6, 8, 2, bidirectional=True, batch_first=True),
    "RNN": nn.RNN(6, 8, nonlinearity="relu"),
}


def press_all(model, ranks):
    return tp.press(model, tp.plan(model, scheme="svd_weight", overrides={"*": {"ranks": ranks}}))


@pytest.mark.parametrize("layer", RECURRENT.values(), ids=RECURRENT)
def test_a_recurrent_layer_at_full_ranks_is_the_dense_one(layer):
    layer.eval()
    pressed, x = press_all(layer, 1.0), torch.randn(4, 3, 6)
    torch.testing.assert_close(pressed(x)[0], layer(x)[0])
    lengths = [4, 3, 1] if not layer.batch_first else [3, 2, 2, 1]
    packed = pack_padded_sequence(x, lengths, batch_first=layer.batch_first)
    torch.testing.assert_close(pressed(packed)[0].data, layer(packed)[0].data)


@pytest.mark.parametrize("layer", RECURRENT.values(), ids=RECURRENT)
def test_a_recurrent_layer_uses_its_factors_and_trains_them(layer):
    pressed, x = press_all(layer, 2), torch.randn(4, 3, 6)
    dense = tp.unpress(pressed).eval()
    assert type(dense) is type(layer)
    torch.testing.assert_close(pressed.eval()(x)[0], dense(x)[0])
    pressed.train()(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in pressed.parameters())
    with torch.no_grad():
        for parameter in pressed.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(pressed.eval()(x)[0], dense(x)[0])
    # Copies and other dtypes go on with their factors.
    double = deepcopy(pressed).double()
    torch.testing.assert_close(double(x.double())[0].float(), pressed(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_are_rebuilt(kind):
    cell, x = kind(6, 8), torch.randn(3, 6)
    pressed = press_all(cell, 2)
    assert count_params(pressed) < count_params(cell)
    torch.testing.assert_close(pressed(x), tp.unpress(pressed)(x))


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 7}])
def test_attention_is_rebuilt(sizes):
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **sizes).eval()
    inputs = [torch.randn(2, 5, n) for n in (8, sizes.get("kdim", 8), sizes.get("vdim", 8))]
    for ranks in (1.0, 2):
        pressed = press_all(layer, ranks)
        expected = layer if ranks == 1.0 else tp.unpress(pressed)
        torch.testing.assert_close(pressed(*inputs)[0], expected(*inputs)[0])


def test_the_fast_path_of_a_transformer_has_the_rebuilt_weights():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 8)
    pressed = tp.press(model, tp.plan(model, budget="params=70%"))
    assert any("in_proj_weight" in layer.name for layer in plan_from_model(pressed).layers)
    slow = pressed(x)
    with torch.no_grad():
        fast = pressed(x)
        assert not torch.allclose(fast, model(x), atol=1e-3)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 12, 10))
        self.router = nn.Linear(12, 4)
        self.mix = nn.Bilinear(10, 10, 6)
        self.tables = nn.ParameterList([torch.randn(9, 8)])
        self.scale = nn.Parameter(torch.ones(1, 1, 6))

    def forward(self, x):
        y = torch.einsum("be,eij,bi->bj", self.router(x).softmax(-1), self.up, x)
        return self.mix(y, y) * self.scale + self.tables[0].sum()


def test_stacks_of_matrices_have_one_rank_each():
    model, x = Experts(), torch.randn(5, 12)
    plan = tp.plan(model, x, scheme="svd_weight", ranks=2)
    layers = {layer.name: layer for layer in plan.layers}
    assert set(layers) == {"up", "mix", "tables.0", "router"}
    assert layers["up"].factor_params == 4 * 2 * (12 + 10)
    pressed = tp.press(model, plan)
    assert count_params(pressed) == plan.params
    for before, after in zip(model.up, pressed.up, strict=True):
        u, s, v = torch.linalg.svd(before)
        torch.testing.assert_close(after, u[:, :2] * s[:2] @ v[:2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pressed(x), tp.unpress(pressed)(x))


def test_every_parameter_is_a_row():
    model = nn.Sequential(Experts(), nn.LSTM(6, 8), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    plan = tp.plan(model, scheme="channel_svd", overrides={"0.router": {"ranks": 2}})
    rows = {layer.name for layer in plan.layers} | set(plan.unpressed)
    for name, _ in model.named_parameters():
        assert name in rows or name.removesuffix(".weight") in rows
    assert plan.unpressed["3.weight"] == plan.unpressed["0.scale"] == VECTOR
    assert VECTOR not in str(plan)
    everywhere = tp.plan(model, scheme="channel_svd", ranks=2)
    assert "svd_weight" in everywhere.unpressed["1.weight_hh_l0"]


def test_what_is_out_of_reach_names_the_largest_in_the_way():
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(20, 20))
    with pytest.raises(tp.InvalidArgumentError, match=r"largest .* 1\.weight \(400 parameters\)"):
        tp.plan(model, budget="params=5%", skip=["1"])


def test_files_and_plans_keep_parameters(tmp_path):
    model, x = nn.Sequential(Experts().eval()), torch.randn(5, 12)
    plan = tp.plan(model, budget="params=60%")
    plan.save(tmp_path / "plan.yaml")
    pressed = tp.press(model, tp.Plan.read(tmp_path / "plan.yaml"))
    assert plan_from_model(pressed).layers == plan.layers
    tp.save(pressed, tmp_path / "a.tpz", quantizer=tp.StepQuantizer(-160))
    torch.testing.assert_close(
        tp.load(tmp_path / "a.tpz", model)(x), pressed(x), atol=1e-3, rtol=1e-3
    )
    names = {tensor.short_name for tensor in tp.inspect(tmp_path / "a.tpz").tensors}
    assert "0.up.core0" in names


def test_parameters_can_be_pressed_again():
    layer = nn.LSTM(6, 8)
    once = press_all(layer, 4)
    plan = tp.plan(layer, scheme="svd_weight", overrides={"weight_ih_l0": {"ranks": 2}})
    twice = tp.press(once, plan)
    assert {x.name: x.ranks for x in plan_from_model(twice).layers} == {
        "weight_ih_l0": (2,),
        "weight_hh_l0": (4,),
    }


def test_zero_ranks_of_parameters_are_dropped():
    pressed = press_all(nn.LSTM(6, 8), 4)
    pressed.parametrizations.weight_hh_l0.original1.data[..., 1:].zero_()
    x = torch.randn(4, 3, 6)
    expected = pressed(x)[0]
    assert drop_zero_ranks(pressed) == {"weight_hh_l0": (1,)}
    torch.testing.assert_close(pressed(x)[0], expected)


def test_weights_that_cannot_be_rebuilt_say_why():
    class Wrapped(nn.Parameter):
        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            with torch._C._DisableTorchDispatch():
                return function(*args, **(kwargs or {}))

    model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(9, 8, max_norm=1.0), nn.LayerNorm((4, 4)))
    model[0].weight = Wrapped(torch.randn(8, 8))
    model.append(nn.Linear(8, 8))
    plan = tp.plan(model, scheme="svd_weight", ranks=2)
    assert [layer.name for layer in plan.layers] == ["3"]
    assert "Wrapped" in plan.unpressed["0"]
    assert "max_norm" in plan.unpressed["1"]
    assert "norm" in plan.unpressed["2"]


def test_layers_with_hooks_or_a_forward_pass_of_their_own_are_rebuilt():
    class SameConv(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), weight, self.bias)

    model, calls = nn.Sequential(SameConv(6, 8, 2), nn.Flatten(), nn.Linear(72, 9)), []
    model[2].register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 6, 3, 3)
    plan = tp.plan(model, x, scheme=["channel_svd", "svd_weight"], budget="params=30%")
    assert {(layer.name, layer.scheme) for layer in plan.layers} == {
        ("0", "svd_weight"),
        ("2", "svd_weight"),
    }
    pressed = tp.press(model, plan)
    calls.clear()
    torch.testing.assert_close(pressed(x), tp.unpress(pressed)(x))
    assert len(calls) == 2
