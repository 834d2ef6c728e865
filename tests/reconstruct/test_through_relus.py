"""Fitting through a ReLU is worth its name, and what ADMM cannot be given is refused."""

import math

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.admm import RETARGETED, low_rank_sparse


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


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_a_layer_in_groups_is_fitted_through_its_norm(groups: int) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(8, 12, 3, groups=groups, bias=False), nn.BatchNorm2d(12)
    net = nn.Sequential(conv, norm, nn.ReLU())
    net(torch.randn(64, 8, 6, 6))
    net.eval()
    nn.init.normal_(norm.weight)  # every channel is seen at a scale of its own
    nn.init.normal_(norm.bias)
    x = torch.randn(200, 8, 6, 6)
    plan = tp.plan(net, x[:1], scheme="channel_svd", overrides={"0": {"ranks": 3}})
    losses = {
        kind: float((tp.press(net, plan, calibration=[x], reconstruct=kind)(x) - net(x)).norm())
        for kind in ("linear", "nonlinear")
    }
    assert losses["nonlinear"] < 0.95 * losses["linear"]


def test_the_target_behind_a_relu_moves_every_few_iterations() -> None:
    targets = []

    def retarget(kernel: torch.Tensor) -> torch.Tensor:
        targets.append(kernel)
        return kernel + torch.eye(3)  # always ahead of the kernel, so that nothing converges

    iterations = 5 * RETARGETED
    weights = {"sparse_weight": 0.1, "rank_weight": 0.1}
    found = low_rank_sparse(
        torch.eye(3), torch.eye(3), **weights, retarget=retarget, iterations=iterations
    )
    assert len(found.primal) == iterations
    assert len(targets) == 5
    assert not targets[0].any()  # the first iteration has its own
