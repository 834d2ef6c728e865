"""Models of kinds that a budget of bytes or parameters once failed on, each by one call."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

import tensorpress as tp


class Translator(nn.Module):
    """A recurrent encoder and a decoder's cell, which returns outputs and states."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.encoder = nn.Embedding(9, 16), nn.GRU(16, 24, batch_first=True)
        self.cell, self.out = nn.GRUCell(16, 24), nn.Linear(24, 9)

    def forward(self, source: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        states, last = self.encoder(self.tokens(source))
        state, outputs = last[0], []
        for token in source[:, :3].unbind(1):
            state = self.cell(self.tokens(token), state)
            outputs.append(self.out(state))
        return torch.stack(outputs, 1), (states, state)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.near, self.far = nn.Linear(48, 3), nn.Linear(48, 2)

    def forward(self, x: Tensor) -> dict[str, object]:
        features = self.body(x)
        return {"near": self.near(features), "far": 1000 * self.far(features), "loss": None}


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.new = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 24, 3))
        with pytest.warns(FutureWarning):
            self.old = nn.utils.weight_norm(nn.Conv1d(24, 24, 3))
        self.spectral, self.out = nn.utils.spectral_norm(nn.Linear(24, 32)), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(relu(self.spectral(relu(self.old(relu(self.new(x)))).mean(-1))))


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(16, 5)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.out(self.encoder(x, src_key_padding_mask=padding).mean(1))


def padded_batch() -> dict[str, Tensor]:
    lengths = torch.randint(2, 8, (50, 1))
    return {"x": torch.randn(50, 7, 16), "padding": torch.arange(7)[None] >= lengths}


MODELS = {
    "tuples and cells": (Translator, lambda: torch.randint(9, (50, 5))),
    "heads of several units": (Heads, lambda: torch.randn(50, 20)),
    "weight and spectral norm": (Normed, lambda: torch.randn(50, 4, 9)),
    "a padded encoder": (Padded, padded_batch),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(("make", "batch"), MODELS.values(), ids=MODELS)
def test_bytes_are_coded_by_calibration(make, batch):
    torch.manual_seed(0)
    result = tp.compress(make().eval(), "bytes=25%", [batch() for _ in range(3)])
    assert result.trial.name == "coding"
    assert [trial.failure for trial in result.trials] == [None]
    assert result.fidelity.nearly_same


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(("make", "batch"), MODELS.values(), ids=MODELS)
def test_every_criterion_reaches_the_budget(make, batch):
    torch.manual_seed(0)
    model = make().eval()
    result = tp.compress(model, "params=85%", [batch() for _ in range(3)], refine=False)
    assert [trial.failure for trial in result.trials] == [None] * len(result.trials)
    assert result.costs["params"][1] <= 0.85 * result.costs["params"][0]
