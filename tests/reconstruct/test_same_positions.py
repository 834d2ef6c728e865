"""Responses and inputs are looked at in the same places, where there are more than are taken."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.reconstruct.layerwise import Reconstruct


class Tokens(nn.Module):
    """A layer of a model of text, some tokens of which are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return torch.relu(self.layer(x))


def net(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(build(), nn.ReLU())


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (net(lambda: nn.Linear(6, 8)), (600, 30, 6)),
    "padded tokens": (Tokens, (600, 30, 6)),
    "Conv1d": (net(lambda: nn.Conv1d(6, 8, 3, stride=2, groups=2)), (200, 6, 160)),
    "Conv2d": (net(lambda: nn.Conv2d(2, 8, 3, padding=1)), (10, 2, 40, 41)),
    "Conv3d": (net(lambda: nn.Conv3d(2, 8, 2)), (20, 2, 10, 9, 12)),
}
MOST = 20_000 // 2
"""Of a batch, where there are two."""


@torch.no_grad()
@pytest.mark.parametrize("kind", ["refit", "linear", "nonlinear"])
@pytest.mark.parametrize("case", CASES)
def test_a_layer_of_full_rank_is_found_again(case: str, kind: Reconstruct) -> None:
    """Its weight gives its responses from its inputs, and from inputs elsewhere nothing does."""
    torch.manual_seed(0)
    build, shape = CASES[case]
    model = build().eval()
    inputs = [torch.randn(shape) for _ in range(2)]
    batches = [{"x": x, "attention_mask": torch.rand(x.shape[:2]) < 0.8} for x in inputs]
    [name] = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    layer = name.removesuffix(".weight")
    made = tp.plan(model, scheme="channel_svd", overrides={layer: {"ranks": 1.0}})
    given = batches if case == "padded tokens" else inputs
    pressed = tp.press(model, made, calibration=given, reconstruct=kind)
    output = model.get_submodule(layer)(inputs[0])
    assert output.numel() // 8 > 1.2 * MOST
    torch.testing.assert_close(pressed.get_submodule(layer)(inputs[0]), output, atol=1e-3, rtol=0)
