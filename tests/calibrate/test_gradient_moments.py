"""Parameters whose inputs cannot be seen: scored and fitted by their gradients."""

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.calibrate.batches import collect_batches
from tensorpress.calibrate.gradient_moments import gradient_moments
from tensorpress.planning.plan import Plan
from tensorpress.reconstruct.gradient_fit import gradient_losses
from tensorpress.reconstruct.unfitted import unfitted_layers
from tensorpress.schemes.layer_spec import describe_weight
from tensorpress.sensitivity.kfac import kfac_scores


class Experts(nn.Module):
    """Experts in one Parameter, among which the first number of an example chooses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.Parameter(torch.randn(3, 20, 16) / 4)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        chosen = (x[:, 0] * 100).long().abs() % 3
        y: Tensor = self.head(torch.einsum("bi,bio->bo", x, self.experts[chosen]).tanh())
        return y


class Standardized(nn.Conv2d):
    """A convolution whose forward pass changes its weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = Standardized(4, 24, 3), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.conv(x.reshape(-1, 4, 3, 3)).flatten(1).tanh())
        return y


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.head = nn.Bilinear(20, 20, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.mix(x, x.flip(1)).tanh())
        return y


KINDS = {"experts": (Experts, 20, "experts"), "forward of its own": (Images, 36, "conv")}
KINDS["bilinear"] = (Pairs, 20, "mix")


def data(width: int, seed: int) -> Tensor:
    """Examples that vary in four directions, two of them a little."""
    torch.manual_seed(seed)
    mix = torch.randn(4, width, generator=torch.Generator().manual_seed(9))
    return torch.randn(300, 4) * torch.tensor([1.0, 1.0, 0.1, 0.1]) @ mix


def plan(model: nn.Module, name: str, rank: int) -> Plan:
    return tp.plan(model, scheme="svd_weight", ranks=rank, targets=[name])


@pytest.mark.parametrize(("kind", "width", "name"), KINDS.values(), ids=KINDS)
def test_factors_follow_from_gradients(kind: type[nn.Module], width: int, name: str) -> None:
    model, other = kind().eval(), data(width, seed=1)
    made = plan(model, name, 2)
    fitted = tp.press(model, made, calibration=[data(width, seed=0)])
    assert unfitted_layers(fitted) == {}
    errors = [
        tp.fidelity(model, pressed, [other]).error for pressed in (fitted, tp.press(model, made))
    ]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize(("kind", "width", "name"), KINDS.values(), ids=KINDS)
def test_scores_are_about_what_the_outputs_lose(
    kind: type[nn.Module], width: int, name: str
) -> None:
    model, x = kind().eval(), torch.randn(300, width, generator=torch.Generator().manual_seed(0))
    scores = {c.ranks: c.score for c in kfac_scores(model, [x], scheme="auto").layers[name]}
    for rank in (2, 3):
        pressed = tp.press(model, plan(model, name, rank), calibration=[x])
        lost = tp.fidelity(model, pressed, [x]).error ** 2
        assert lost / 6 < scores[rank,] < 6 * lost


def test_what_outputs_do_not_depend_on_stays_unfitted() -> None:
    class Idle(Experts):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = super().forward(x)
            return y + self.head.bias

    model, x = Idle().eval(), data(20, seed=0)
    pressed = tp.press(model, plan(model, "experts", 2), calibration=[x])
    assert list(unfitted_layers(pressed)) == ["experts"]


def test_wide_parameters_are_left_out() -> None:
    net = nn.Linear(4609, 2)
    weights = {"weight": (net.weight, describe_weight(net, "weight"))}
    assert gradient_moments(net, collect_batches([torch.randn(3, 4609)], net), weights) == {}


def test_moments_of_one_matrix_are_those_of_inputs_and_gradients() -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 4)
    x = torch.randn(4000, 6) * torch.arange(1.0, 7)
    weights = {"weight": (net.weight, describe_weight(net, "weight"))}
    moments = gradient_moments(net, collect_batches([x], net), weights)["weight"]
    second = x.mT.double() @ x.double()
    assert float((moments.inputs[0] / moments.inputs.norm() - second / second.norm()).norm()) < 0.1
    assert float((moments.outputs[0] / moments.outputs[0, 0, 0] - torch.eye(4)).norm()) < 0.5
    # At rank 0 nothing is left: W x of the outputs' variance.
    lost = gradient_losses(net.weight.detach()[None], moments)
    y = (net(x) - net.bias).detach()
    variance = (y - y.mean(0)).square().sum()
    assert lost[0] == pytest.approx(float(y.square().sum() / variance), rel=0.2)
