"""Ranks by the energy of responses, from outputs or from moments of inputs."""

from math import exp

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.calibrate import input_moments
from tensorpress.sensitivity.response_energy import response_energies


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 8, 3, stride=2)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.never = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.twice(torch.relu(self.twice(self.up(x))))
        return result


@torch.no_grad()
def test_scores_are_the_energies_of_the_outputs_without_the_bias(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(20, 4, 5, 5)
    scores = response_energies(net, [x[:10], x[10:]])
    by_moments = response_energies(net, tp.Calibration.collect(net, [x]))
    y = (net.up(x) - net.up.bias[:, None, None]).movedim(1, -1).reshape(-1, 8).double()
    energies = torch.linalg.svdvals(y).square()
    for one in (scores, by_moments):
        assert set(one.layers) == {"up", "twice"}
        for choice in one.layers["up"]:
            share = float(energies[: choice.ranks[0]].sum() / energies.sum())
            assert exp(-choice.score) == pytest.approx(share, rel=1e-4)
    assert "layer never is not scored: the calibration data do not reach it" in caplog.text


def test_layers_of_moments_in_blocks_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_moments, "MAX_COLUMNS", 20)
    net = nn.Sequential(nn.Linear(50, 10), nn.ReLU(), nn.Linear(10, 10))
    calibration = tp.Calibration.collect(net, [torch.randn(100, 50)])
    assert set(response_energies(net, calibration).layers) == {"0", "2"}


def test_padding_does_not_count() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.layer(x)

    torch.manual_seed(0)
    net, x = Tokens(), torch.randn(4, 6, 8)
    mask = torch.ones(4, 6, dtype=torch.long)
    mask[:, 4:] = 0
    loud = torch.where(mask.bool()[..., None], x, 100 * x)
    scores = [response_energies(net, [{"x": value, "attention_mask": mask}]) for value in (x, loud)]
    assert scores[0].layers == scores[1].layers
