"""A Linear after a flatten, pressed as the convolution that it is (Kim et al. 2016)."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tensorpress.codec.save_load import load, save
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure import count_macs
from tensorpress.planning import plan, plan_from_model
from tensorpress.planning.plan import Plan
from tensorpress.press.factor_norms import factor_norms
from tensorpress.press.press import press
from tensorpress.press.unpress import unpress
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.registry import scheme

RANKS = (3, 5)


def layers() -> tuple[nn.Linear, nn.Conv2d]:
    """The same weight as a Linear on a flattened 6×4×2 map and as a convolution 4×2."""
    linear, conv = nn.Linear(48, 10), nn.Conv2d(6, 10, (4, 2))
    with torch.no_grad():
        conv.weight.copy_(linear.weight.reshape(conv.weight.shape))
        conv.bias.copy_(linear.bias)
    return linear, conv


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), layers()[0]).eval()


def pressed_net(dense: nn.Module) -> nn.Module:
    entry = {"3": {"ranks": RANKS, "positions": [4, 2]}}
    return press(dense, plan(dense, scheme="tucker2", targets=["3"], overrides=entry))


def test_it_is_the_convolution() -> None:
    linear, conv = layers()
    x = torch.randn(7, 6, 4, 2)
    one = press_layer(linear, scheme("tucker2", {"positions": (4, 2)}), RANKS)
    other = press_layer(conv, "tucker2", RANKS)
    for mine, his in zip(one.kernels(), other.kernels(), strict=True):
        torch.testing.assert_close(mine, his)
    torch.testing.assert_close(one(x.flatten(1)), other(x).flatten(1))
    torch.testing.assert_close(one.weight @ x[0].flatten() + one.bias, one(x[0].flatten()))
    assert one(x.reshape(7, 1, 48)).shape == (7, 1, 10)
    assert (one.in_features, hasattr(one, "kernel_size")) == (48, False)


def test_costs_ranks_and_errors_are_those_of_the_convolution() -> None:
    linear, conv = layers()
    method, plain = scheme("tucker2", {"positions": (4, 2)}), scheme("tucker2")
    spec, view = describe_layer(linear), describe_layer(conv)
    kernel, twin = linear.weight.detach()[None].double(), conv.weight.detach()[None].double()
    assert method.largest_ranks(spec) == plain.largest_ranks(view) == (6, 10)
    assert method.attainable(spec, (1, 10)) == (1, 8)
    # U_in 6·3, core 3·5·8, U_out 5·10 and the bias; the first is used at each of 8 positions.
    assert method.params(spec, RANKS) == 18 + 120 + 50 + 10
    assert method.macs(spec, RANKS, ()) == 8 * 18 + 120 + 50
    assert method.macs(spec, RANKS, (3,)) == 3 * (8 * 18 + 120 + 50)
    candidates = method.candidates(spec)
    assert candidates == plain.candidates(view)
    assert method.errors(spec, kernel, candidates) == plain.errors(view, twin, candidates)
    for one, other in zip(method.spectra(spec, kernel), plain.spectra(view, twin), strict=True):
        assert torch.equal(one.values, other.values)


def test_full_ranks_are_exact() -> None:
    linear, _ = layers()
    pressed = press_layer(linear, scheme("tucker2", {"positions": (4, 2)}), (6, 10))
    torch.testing.assert_close(pressed.weight + 0, linear.weight)


def test_plan_press_file_and_back(tmp_path: Path) -> None:
    dense = net()
    entry = {"3": {"ranks": RANKS, "positions": [4, 2]}}
    planned = plan(dense, scheme="tucker2", targets=["3"], overrides=entry)
    planned.save(tmp_path / "plan.yaml")
    pressed = press(dense, Plan.read(tmp_path / "plan.yaml"))
    x = torch.randn(3, 2, 6, 4)
    assert count_macs(pressed, [x]) == 8 * 2 * 6 * 9 + 8 * 18 + 120 + 50
    assert plan_from_model(pressed).layers == planned.layers
    save(pressed, tmp_path / "a.tpz")
    decoded = load(tmp_path / "a.tpz", net())
    torch.testing.assert_close(decoded(x), pressed(x), rtol=0.1, atol=0.1)
    assert plan_from_model(decoded).layers == planned.layers
    torch.testing.assert_close(unpress(pressed)(x), pressed(x))


def test_it_is_fitted_to_responses() -> None:
    dense = net()
    x = torch.randn(400, 2, 6, 4) * torch.linspace(0.1, 3, 48).reshape(2, 6, 4)
    entry = {"3": {"ranks": RANKS, "positions": [4, 2]}}
    planned = plan(dense, scheme="tucker2", targets=["3"], overrides=entry)

    def error(model: nn.Module) -> float:
        return float((model(x) - dense(x)).detach().square().mean())

    fitted = press(dense, planned, calibration=[x], reconstruct="linear")
    assert error(fitted) < 0.95 * error(press(dense, planned))


def test_norms_between_the_factors_are_absorbed() -> None:
    model, x = pressed_net(net()), torch.randn(20, 2, 6, 4)
    with factor_norms(model) as normed:
        normed(x)
        expected = normed.eval()(x)
    torch.testing.assert_close(model.eval()(x), expected)


def test_it_is_traced_and_exported() -> None:
    model, x = pressed_net(net()).eval(), torch.randn(3, 2, 6, 4)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.randn(5, 2, 6, 4)
    torch.testing.assert_close(exported.module()(more), model(more))


@pytest.mark.parametrize(
    ("layer", "positions", "message"),
    [
        (nn.Linear(48, 10), (5, 2), "48 inputs do not fit 5×2"),
        (nn.Linear(48, 10), (2, 2, 2, 2), "do not fit 2×2×2×2"),
        (nn.Conv2d(4, 4, 3), (2, 2), "positions are for a Linear that follows a flatten"),
    ],
)
def test_what_has_no_such_positions(
    layer: nn.Module, positions: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        press_layer(layer, scheme("tucker2", {"positions": positions}), RANKS)
