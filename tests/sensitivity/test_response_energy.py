"""Ranks by the energy of responses, from batches and from the moments of inputs."""

import torch
from torch import nn

import tensorpress as tp
from tensorpress.sensitivity.response_energy import response_energies


class Mixed(nn.Module):
    """A wide kernel, groups, a Linear that widens, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv1d(2, 12, 63, padding="same")
        self.grouped = nn.Conv1d(12, 12, 5, groups=2, bias=False)
        self.up = nn.Linear(12, 40)
        self.twice = nn.Linear(40, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.wide(x).relu()).mean(2)
        return self.twice(self.twice(self.up(x).relu()).relu())


def test_scores_are_those_of_the_moments_of_inputs() -> None:
    torch.manual_seed(0)
    net = Mixed().eval()
    data = [torch.randn(8, 2, 40), torch.randn(3, 2, 40)]
    direct = response_energies(net, data)
    by_inputs = response_energies(net, tp.Calibration.collect(net, data))
    assert set(direct.layers) >= {"wide", "up", "twice"}
    for name in by_inputs.layers:
        for one, other in zip(direct.layers[name], by_inputs.layers[name], strict=True):
            assert one.ranks == other.ranks
            assert abs(one.score - other.score) < 1e-3 * (1 + abs(other.score)), name


def test_padding_does_not_count() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    torch.manual_seed(0)
    net, x = Tokens(), torch.randn(4, 6, 8)
    mask = torch.ones(4, 6, dtype=torch.long)
    mask[:, 4:] = 0
    loud = torch.where(mask.bool()[..., None], x, 100 * x)
    scores = [response_energies(net, [{"x": value, "attention_mask": mask}]) for value in (x, loud)]
    assert scores[0].layers == scores[1].layers
