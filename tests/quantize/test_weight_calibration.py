"""Steps of weights by calibration."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tensorpress.calibrate import input_moments
from tensorpress.calibrate.batches import collect_batches
from tensorpress.compress import fidelity
from tensorpress.errors import InvalidArgumentError
from tensorpress.quantize.encode import decode, encode
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


@torch.no_grad()
def error(net: nn.Module, file: Path, x: Tensor) -> float:
    """Return the squared error of the outputs of a file, relative to the outputs."""
    expected, state = net(x), {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(decode(file))
    result = float((net(x) - expected).square().sum() / expected.square().sum())
    net.load_state_dict(state)
    return result


class Recurrent(nn.Module):
    """An LSTM, whose weights no layer with known inputs has, and a head that has."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 4)
        with torch.no_grad():
            self.lstm.weight_ih_l0 *= scale

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.lstm(x)[0][:, -1])
        return result


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_weights_without_inputs_are_no_worse_than_without_data(
    scale: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, x = Recurrent(scale).eval(), torch.randn(320, 10, 8) / max(scale, 1.0)
    for name, data in (("plain", None), ("calibrated", x[:256].split(64))):
        encode(net, tmp_path / name, size=3000, calibration=data)
    errors = [error(net, tmp_path / name, x[256:]) for name in ("plain", "calibrated")]
    assert errors[1] < 1.05 * errors[0]


def test_steps_of_weights_without_inputs_follow_their_gradients() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.randn(30, 30)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x @ self.first, 8 * x @ self.second], 1)

    torch.manual_seed(0)
    net = Scaled()
    batches = collect_batches([torch.randn(100, 30)], net)
    steps = {
        w.name: w.log_step
        for w in calibrated_weights(net, dict(net.named_parameters()), batches, 0)
    }
    assert steps["first"] - steps["second"] == pytest.approx(3, abs=0.3)


def test_a_model_whose_outputs_depend_on_no_weight_is_refused() -> None:
    net = nn.Sequential(nn.ReLU())
    net.never = nn.Linear(3, 3)
    batches = collect_batches([torch.randn(5, 3)], net)
    net.forward = lambda x: x.relu()  # type: ignore[method-assign]
    with pytest.raises(InvalidArgumentError, match="depend on any weight"):
        calibrated_weights(net, dict(net.named_parameters()), batches, seed=0)


@pytest.mark.parametrize("bits", [2.0, 3.0, 5.0])
def test_wide_layers_are_no_worse_than_rounded_to_nearest(
    bits: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_moments, "MAX_COLUMNS", 100)
    monkeypatch.setattr(input_moments, "WIDE_MOMENTS", 600 * 50)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(600, 24), nn.ReLU(), nn.Linear(24, 10)).eval()
    x = (torch.randn(1200, 60) @ torch.randn(60, 600) + 0.3 * torch.randn(1200, 600)).relu()
    batches = collect_batches([x[:1000]], net)
    [wide, _] = calibrated_weights(
        net, {n: net.get_parameter(n) for n in ("0.weight", "2.weight")}, batches, 0
    )
    assert wide.inputs is not None
    assert [tuple(h.shape) for h in wide.inputs.moments] == [(12, 1, 50, 50)]
    for name, data in (("plain", None), ("calibrated", [x[:1000]])):
        encode(net, tmp_path / name, bits=bits, calibration=data)
    errors = [error(net, tmp_path / name, x[1000:]) for name in ("plain", "calibrated")]
    assert errors[1] < 0.8 * errors[0]


class PaddedConv(nn.Conv2d):
    """A convolution that pads by itself, as those of networks from TensorFlow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (1, 2, 1, 2)))


@pytest.mark.parametrize("groups", [1, 6])
def test_convolutions_with_a_forward_pass_of_their_own_are_coded(
    groups: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), PaddedConv(6, 6, 5, stride=2, groups=groups), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 9, 5)).eval()
    x, other = torch.randn(2, 60, 3, 9, 9)
    encode(net, tmp_path / "a.tpz", bits=8, calibration=[x])
    decoded = deepcopy(net)
    decoded.load_state_dict(decode(tmp_path / "a.tpz"))
    assert fidelity(net, decoded, [other]).error < 0.2
