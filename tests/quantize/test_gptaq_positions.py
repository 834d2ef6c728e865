"""Rounding in order looks at both models in the same places."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from tensorpress.calibrate.batches import collect_batches
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.quantize import gptaq
from tensorpress.quantize.gptaq import round_in_order


@torch.no_grad()
def test_fine_steps_lose_nothing_where_few_of_many_positions_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Responses in other places than the inputs would be fitted by nothing."""
    monkeypatch.setattr(gptaq, "ROWS", 400)
    monkeypatch.setattr(gptaq, "_MAX_VALUES", 0)
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    batches = collect_batches([torch.randn(8, 2, 14, 15) for _ in range(2)], dense)
    model = deepcopy(dense)
    fine = StepQuantizer(-160)
    rounded = round_in_order(model, dense, {"0": fine, "2": fine}, batches, seed=3)
    assert list(rounded) == ["0", "2"]
    assert all(layer.squared_error < 1e-8 * layer.squared_norm for layer in rounded.values())
    x = torch.randn(8, 2, 14, 15)
    torch.testing.assert_close(model(x), dense(x), atol=1e-3, rtol=0)
