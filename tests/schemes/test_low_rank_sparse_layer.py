"""A kernel on few channels plus one of low rank: what holds beside what holds for every scheme."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.errors import CorruptFileError
from tensorpress.schemes.canonical_kernel import layer_kernel
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.low_rank_sparse import LowRankSparseLayer
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.registry import scheme


def planted(conv: nn.Conv2d, channels: list[int], rank: int) -> nn.Conv2d:
    """Give a convolution a kernel that is exactly of a form."""
    random = torch.Generator().manual_seed(0)
    groups, out = conv.groups, conv.out_channels // conv.groups
    shape = (groups, out, *conv.weight.shape[1:])
    low = torch.randn(groups, out, rank, generator=random) @ torch.randn(
        groups, rank, shape[2] * 9, generator=random
    )
    kernel = low.reshape(shape)
    kernel[:, :, channels] += 5 * torch.randn(groups, out, len(channels), 3, 3, generator=random)
    conv.weight.data = kernel.flatten(0, 1)
    return conv


@pytest.mark.parametrize("groups", [1, 2])
def test_a_planted_sum_is_found(groups: int) -> None:
    conv = planted(nn.Conv2d(16 * groups, 12 * groups, 3, groups=groups), [2, 7, 11], 2)
    pressed = press_layer(conv, "low_rank_sparse", (3, 2))
    assert isinstance(pressed, LowRankSparseLayer)
    assert pressed.selection().tolist() == [[2, 7, 11]] * groups
    assert pressed.kept.tolist() == [16 * g + c for g in range(groups) for c in (2, 7, 11)]
    assert pressed.relative_error < 1e-3
    x = torch.randn(2, 16 * groups, 6, 6)
    torch.testing.assert_close(pressed(x), conv(x), atol=0.05, rtol=1e-2)


def test_channels_left_out_reach_the_first_part_no_more() -> None:
    conv = planted(nn.Conv2d(8, 6, 3), [1, 4], 1)
    pressed = press_layer(conv, "low_rank_sparse", (2, 1))
    assert isinstance(pressed, LowRankSparseLayer)
    assert pressed.few.weight.shape == (6, 2, 3, 3)
    for parameter in pressed.low_rank.parameters():
        parameter.data.zero_()
    x = torch.randn(1, 8, 5, 5)
    rest = x.clone()
    rest[:, [0, 2, 3, 5, 6, 7]] = torch.nan
    torch.testing.assert_close(pressed.few(x[:, [1, 4]]), pressed.few(rest[:, [1, 4]]))
    assert sum(p.numel() for p in pressed.parameters()) == 6 * 2 * 9 + 6 + 8 * 9 + 6


def test_predicted_errors_are_bounds_that_are_exact_without_an_alternation() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(10, 8, 3)
    chosen, spec = scheme("low_rank_sparse"), describe_layer(conv)
    candidates = chosen.candidates(spec)
    bounds = chosen.errors(spec, layer_kernel(conv, spec).double(), candidates)
    for ranks, bound in zip(candidates, bounds, strict=True):
        error = press_layer(conv, "low_rank_sparse", ranks).relative_error
        assert error**2 <= bound * (1 + 1e-6)
        assert bound < 1


def test_the_choice_travels_with_the_state() -> None:
    conv = planted(nn.Conv2d(8, 6, 3), [1, 4], 1)
    pressed = press_layer(conv, "low_rank_sparse", (2, 1))
    other = scheme("low_rank_sparse").skeleton(describe_layer(conv), (2, 1), like=torch.empty(0))
    other.load_state_dict(pressed.state_dict())
    x: Tensor = torch.randn(1, 8, 5, 5)
    torch.testing.assert_close(other(x), pressed(x))


@pytest.mark.parametrize("wrong", [-1, 8, 1 << 40])
def test_a_choice_that_cannot_be_is_found_in_files(tmp_path: Path, wrong: int) -> None:
    net = nn.Sequential(
        press_layer(planted(nn.Conv2d(8, 6, 3), [1, 4], 1), "low_rank_sparse", (2, 1))
    )
    net[0].kept[1] = wrong
    tp.save(net, tmp_path / "a.tpz")
    with pytest.raises(
        CorruptFileError, match=r"layer '0' chooses channels \[1, .*, but has only 8"
    ):
        tp.load(tmp_path / "a.tpz", model=nn.Sequential(nn.Conv2d(8, 6, 3)))
