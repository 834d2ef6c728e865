"""Budgets that no ranks meet, or that are met already, are known before weights are decomposed."""

import logging

import pytest
import torch
from torch import nn

from tensorpress import BudgetMetError, compress, plan
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.planner import check_budget

X = torch.zeros(1, 40)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))


@pytest.mark.parametrize("kind", ["params", "bytes", "macs"])
def test_the_least_budget_is_in_reach_and_one_less_is_not(kind: str) -> None:
    model = net()
    smallest = plan(model, X, scheme="channel_svd", ranks=1)
    least = getattr(smallest, kind)
    check_budget(model, X, budget=f"{kind}={least}")
    assert getattr(plan(model, X, budget=f"{kind}={least}"), kind) == least
    with torch.device("meta"):
        empty = net()
    with pytest.raises(
        InvalidArgumentError, match=f"out of reach: .* the model still has {least:,}"
    ):
        check_budget(empty, X.to("meta"), budget=f"{kind}={least - 1}")


def test_what_is_met_already_is_an_error_of_its_own() -> None:
    for budget in ("params=2000", "macs=2000", "bytes=1MB", "latency=1000s"):
        with pytest.raises(BudgetMetError, match="met already: the dense model"):
            plan(net(), X, budget=budget)
        with pytest.raises(BudgetMetError, match="met already: the dense model"):
            compress(net(), budget, [torch.randn(64, 40)])


def test_compress_scores_nothing_for_a_budget_out_of_reach() -> None:
    class Once(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.layers = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.layers(x)

    model = Once()
    batches = [torch.randn(8, 40) for _ in range(40)]
    with pytest.raises(InvalidArgumentError, match="params=1% is out of reach"):
        compress(model, "params=1%", batches)
    assert model.calls < len(batches) / 2


def test_noise_is_named_where_evbmf_finds_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 50))
    with torch.no_grad():
        for layer in model:
            layer.weight.normal_()
        model[1].weight.add_(20 * torch.randn(50, 4) @ torch.randn(4, 100))
    with caplog.at_level(logging.WARNING):
        plan(model, scheme="channel_svd", ranks=0.5)
        assert caplog.text == ""
        assert plan(model, scheme="channel_svd", ranks="evbmf").layers[0].ranks == (1,)
    assert "only noise in 1 of 2 layers" in caplog.text
    assert "lose most of their weight: '0';" in caplog.text
