"""Choosing the channels of a sum by responses."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

from tensorpress.decompose.precision import to_working_precision
from tensorpress.reconstruct import admm, channel_selection
from tensorpress.reconstruct.alternating_fit import response_error
from tensorpress.reconstruct.channel_selection import choose_channels
from tensorpress.schemes.canonical_kernel import layer_kernel
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.low_rank_sparse import LowRankSparseLayer
from tensorpress.schemes.press_layer import press_layer


@pytest.mark.parametrize("groups", [1, 2])
def test_channels_that_carry_no_signal_are_not_kept(
    groups: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The largest weights multiply inputs that are almost zero: only responses show it."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8 * groups, 12 * groups, 3, groups=groups)
    scale = torch.ones(8)
    scale[:2] = 20.0
    with torch.no_grad():
        conv.weight.mul_(scale[:, None, None])
    pressed = press_layer(conv, "low_rank_sparse", (2, 2))
    assert isinstance(pressed, LowRankSparseLayer)
    assert pressed.selection().tolist() == [[0, 1]] * groups
    kernel = to_working_precision(layer_kernel(conv, describe_layer(conv)))
    power = torch.tensor([1e-4] * 2 + [1.0] * 4 + [9.0] * 2).double().repeat_interleave(9)
    second = torch.diag(power).expand(groups, -1, -1)

    def error(kernels: list[torch.Tensor]) -> float:
        composed = pressed.compose([to_working_precision(k) for k in kernels]).flatten(2)
        return response_error(composed, kernel.flatten(2), second)

    before = error(pressed.kernels())
    caplog.set_level(logging.INFO, "tensorpress.press")
    kernels = choose_channels(pressed, "conv", kernel, second)
    assert pressed.selection().tolist() == [[6, 7]] * groups
    assert error(kernels) < 0.7 * before
    assert caplog.text.count("layer conv: ADMM ended after") == groups


def test_a_choice_that_responses_do_not_beat_stays() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 1)
    with torch.no_grad():
        conv.weight[:, 2] *= 50
    pressed = press_layer(conv, "low_rank_sparse", (1, 1))
    assert isinstance(pressed, LowRankSparseLayer)
    kernel = to_working_precision(layer_kernel(conv, describe_layer(conv)))
    choose_channels(pressed, "conv", kernel, torch.eye(6).double()[None])
    assert pressed.selection().tolist() == [[2]]


def test_a_worse_choice_by_responses_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels and kernels are then those that the weight alone gives."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 1)
    with torch.no_grad():
        conv.weight[:, :2] *= 50
    pressed = press_layer(conv, "low_rank_sparse", (1, 1))
    assert isinstance(pressed, LowRankSparseLayer)
    kernel = to_working_precision(layer_kernel(conv, describe_layer(conv)))
    before, split = pressed.selection().tolist(), admm.split_ranks
    assert before[0][0] < 2

    def worse(*arguments: Any, **options: Any) -> Any:
        return torch.tensor([4]), split(*arguments, **options)[1]

    monkeypatch.setattr(channel_selection, "split_ranks", worse)
    kernels = choose_channels(pressed, "conv", kernel, torch.eye(6).double()[None])
    assert pressed.selection().tolist() == before
    assert len(kernels) == len(pressed.kernels())
