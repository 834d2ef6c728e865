"""Rows to fit a layer by."""

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tensorpress.calibrate.batches import collect_batches
from tensorpress.reconstruct.samples import Positions, inputs_in_order, sample_responses


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 1)])
def test_what_follows_in_place_does_not_change_responses(layer: nn.Module) -> None:
    shape = (5, 6) if isinstance(layer, nn.Linear) else (5, 6, 3, 3)
    x = torch.randn(shape)
    x = x if x.ndim == 2 else x.contiguous(memory_format=torch.channels_last)
    plain, changed = nn.Sequential(layer), nn.Sequential(layer, nn.ReLU(inplace=True))
    rows = [
        sample_responses(net, ["0"], collect_batches([x], net), Positions(100, seed=0)).rows["0"]
        for net in (plain, changed)
    ]
    torch.testing.assert_close(rows[1], rows[0], rtol=0, atol=0)
    assert bool((rows[1] < 0).any())


def test_inputs_and_responses_are_at_the_same_positions() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2))
    batches = collect_batches([torch.randn(2, 3, 9, 9) for _ in range(3)], net)
    positions = Positions(40, seed=3)
    responses = sample_responses(net, ["0", "2"], batches, positions).rows
    for name, inputs in inputs_in_order(net, ["0", "2"], batches, positions):
        layer = net.get_submodule(name)
        kernel = layer.weight.reshape(layer.groups, -1, inputs.shape[-1])
        expected = torch.einsum("pgc,goc->pgo", inputs, kernel)
        expected = expected + layer.bias.reshape(layer.groups, -1)
        assert len(inputs) == 120
        torch.testing.assert_close(responses[name], expected, rtol=1e-4, atol=1e-5)


def test_modes_of_the_model_do_not_reach_the_rows() -> None:
    class Negative(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            return -result if isinstance(result, Tensor) else result

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with Negative():
                return super().forward(x)

    net = Net(nn.Linear(6, 4))
    x = torch.randn(5, 6)
    rows = sample_responses(net, ["0"], collect_batches([x], net), Positions(100, seed=0)).rows["0"]
    torch.testing.assert_close(rows[:, 0], -nn.functional.linear(x, *net[0].parameters()))
