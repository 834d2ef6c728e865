"""Steps of weights by calibration."""

import pytest
import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import collect_batches
from tensorpress.quantize.weight_calibration import calibrated_weights


def test_a_layer_without_gradients_has_the_mean_step_of_the_others() -> None:
    class Partly(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self[0](x)
            result: Tensor = self[2](self[1](x))
            return result

    torch.manual_seed(0)
    layers = [nn.Linear(20, 20, bias=False) for _ in range(3)]
    steps = []
    for net in (Partly(*layers), nn.Sequential(*layers)):
        tensors = dict(net.named_parameters())
        batches = collect_batches([torch.randn(500, 20)], net)
        weights = calibrated_weights(net, tensors, batches, seed=0)
        steps.append([weight.log_step for weight in weights])
    assert steps[0] == pytest.approx(steps[1], abs=2.0)  # log2; the floor is ten below
