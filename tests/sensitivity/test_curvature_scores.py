"""Ranks by the curvature of the loss: its scores are about what divergence is lost."""

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.calibrate.loss_curvature import LossCurvature
from tensorpress.errors import InvalidArgumentError
from tensorpress.sensitivity.curvature_scores import curvature_scores


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 6))


def test_the_score_is_about_the_divergence(net: nn.Module) -> None:
    x = torch.randn(4000, 16)
    curvature = LossCurvature.collect(net, [x])
    scores = curvature_scores(net, curvature, targets=("0",))
    [score] = [s.score for s in scores.layers["0"] if s.ranks == (12,)]
    plan = tp.plan(net, scheme="pivoted_svd", ranks=12, targets=("0",))
    pressed = tp.press(net, plan, calibration=curvature)
    p, q = (model(x).double().log_softmax(1) for model in (net, pressed))
    divergence = float((p.exp() * (p - q)).sum(1).mean().detach())
    assert 0.5 < score / divergence < 2


def test_a_layer_that_matters_less_loses_more_ranks(net: nn.Module) -> None:
    model = nn.Module()
    model.a, model.b, model.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 6)
    model.b.load_state_dict(model.a.state_dict())
    model.forward = lambda x: model.head(model.a(x) + 0.01 * model.b(x))
    curvature = LossCurvature.collect(model, [torch.randn(500, 16)])
    scores = curvature_scores(model, curvature, skip=("head",))
    plan = tp.plan(
        model, scheme="pivoted_svd", allocation=scores, budget="params=70%", skip=("head",)
    )
    assert [layer.name for layer in plan.layers] == ["b"]


def test_schemes_of_other_ranks_and_nothing_to_press_are_refused(net: nn.Module) -> None:
    curvature = LossCurvature.collect(net, [torch.randn(50, 16)])
    with pytest.raises(InvalidArgumentError, match="not of tucker2"):
        curvature_scores(net, curvature, scheme="tucker2")
    with pytest.raises(InvalidArgumentError, match="no Linear"):
        curvature_scores(net, LossCurvature({}, {}, 1))
