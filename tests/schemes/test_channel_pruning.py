"""A kernel on few input channels: what holds beside what holds for every scheme."""

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.schemes.canonical_kernel import layer_kernel
from tensorpress.schemes.channel_pruning import PrunedLayer
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.registry import scheme


def weighted(conv: nn.Conv2d, heavy: list[int]) -> nn.Conv2d:
    """Make the weights of some channels of every group ten times as large."""
    with torch.no_grad():
        conv.weight[:, heavy] *= 10
    return conv


@pytest.mark.parametrize("groups", [1, 2])
def test_the_channels_of_most_energy_are_kept_and_the_rest_is_not_there(groups: int) -> None:
    conv = weighted(nn.Conv2d(6 * groups, 8 * groups, 3, groups=groups), [1, 4])
    pressed = press_layer(conv, "channel_pruning", 2)
    assert isinstance(pressed, PrunedLayer)
    assert pressed.kept.tolist() == [6 * g + c for g in range(groups) for c in (1, 4)]
    assert torch.equal(pressed.few.weight, conv.weight[:, [1, 4]])
    x = torch.randn(2, 6 * groups, 7, 7)
    left_out = [c for c in range(6 * groups) if c % 6 not in (1, 4)]
    zeroed = x.clone()
    zeroed[:, left_out] = 0
    x[:, left_out] = torch.nan
    torch.testing.assert_close(pressed(x), conv(zeroed))


@pytest.mark.parametrize("name", ["channel_pruning", "low_rank_sparse"])
@pytest.mark.parametrize(
    ("dense", "sizes", "memory_format"),
    [
        (nn.Conv2d(6, 8, 3), (7, 7), torch.channels_last),
        (nn.Conv2d(6, 8, 3), (7, 7), torch.contiguous_format),
        (nn.Conv3d(6, 8, 3), (5, 5, 5), torch.channels_last_3d),
    ],
)
def test_the_channels_kept_come_in_the_memory_format_of_the_input(
    name: str, dense: nn.Module, sizes: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    ranks = {"channel_pruning": 2, "low_rank_sparse": (2, 3)}[name]
    pressed = press_layer(dense, name, ranks)
    assert isinstance(pressed, PrunedLayer)
    seen: list[torch.Tensor] = []
    pressed.few.register_forward_pre_hook(lambda _, given: seen.extend(given))
    x = torch.randn(2, 6, *sizes)
    found = pressed(x.to(memory_format=memory_format))
    assert seen[0].is_contiguous(memory_format=memory_format)
    assert torch.equal(seen[0], x[:, pressed.kept])
    torch.testing.assert_close(found, pressed(x))


def test_the_predicted_error_is_the_energy_left_out() -> None:
    conv = nn.Conv2d(10, 8, 3, groups=2)
    chosen, spec = scheme("channel_pruning"), describe_layer(conv)
    candidates = [(channels,) for channels in range(1, 6)]
    found = chosen.errors(spec, layer_kernel(conv, spec).double(), candidates)
    for ranks, error in zip(candidates, found, strict=True):
        pressed = press_layer(conv, "channel_pruning", ranks)
        assert pressed.relative_error**2 == pytest.approx(error, abs=1e-12)
    assert found == sorted(found, reverse=True)


def test_a_budget_is_met_and_responses_find_the_channels_that_weights_do_not() -> None:
    """The inputs of the heavy channels are almost zero."""
    torch.manual_seed(0)
    net = nn.Sequential(weighted(nn.Conv2d(8, 12, 3), [0, 1]))
    power = torch.tensor([1e-3] * 2 + [1.0] * 4 + [3.0] * 2)[:, None, None]
    batches = [power * torch.randn(64, 8, 6, 6) for _ in range(4)]
    plan = tp.plan(net, batches[0], scheme="channel_pruning", budget="params=51%")
    by_weights = tp.press(net, plan)
    assert by_weights[0].kept.tolist()[:2] == [0, 1]
    for kind in ("inputs", "linear"):
        pressed = tp.press(net, plan, calibration=batches, reconstruct=kind)
        assert pressed[0].kept.tolist()[-2:] == [6, 7]
        assert not {0, 1} & set(pressed[0].kept.tolist())
        x = power * torch.randn(64, 8, 6, 6)
        gaps = [float((model(x) - net(x)).detach().norm()) for model in (pressed, by_weights)]
        assert gaps[0] < 0.5 * gaps[1]
