"""Fitting through a ReLU is worth its name, and what ADMM cannot be given is refused."""

import math

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.admm import low_rank_sparse


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("scheme", ["channel_svd", "low_rank_sparse", "channel_pruning"])
def test_responses_behind_the_relu_are_nearer_than_fitted_before_it(
    scheme: str, norm: bool
) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(24, 32), nn.BatchNorm1d(32) if norm else nn.Identity(), nn.ReLU()]
    net = nn.Sequential(*layers).eval()
    net[0].weight[:8] *= 3.0
    net[0].bias[:8] = -15.0  # the largest responses are cut off
    x, other = torch.randn(2, 3000, 24)
    plan = tp.plan(net, x[:1], scheme=scheme, overrides={"0": {"ranks": 0.25}})
    losses = {
        kind: float(
            (tp.press(net, plan, calibration=[x], reconstruct=kind)(other) - net(other)).norm()
        )
        for kind in ("linear", "nonlinear")
    }
    assert losses["nonlinear"] < 0.95 * losses["linear"]


@pytest.mark.parametrize(
    "weights", [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, -1.0), (math.nan, 1.0)]
)
def test_weights_that_are_not_positive_are_refused(weights: tuple[float, float]) -> None:
    with pytest.raises(InvalidArgumentError, match="must be positive"):
        low_rank_sparse(
            torch.eye(3), torch.eye(3), sparse_weight=weights[0], rank_weight=weights[1]
        )


@pytest.mark.parametrize("width", [0, -1, 2, 4])
def test_groups_that_do_not_divide_the_columns_are_refused(width: int) -> None:
    with pytest.raises(InvalidArgumentError, match="groups"):
        low_rank_sparse(torch.eye(3), torch.eye(3), sparse_weight=1.0, rank_weight=1.0, width=width)
