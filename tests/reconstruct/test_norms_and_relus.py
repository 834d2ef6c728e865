"""What comes after a layer: batch norms that get new statistics, ReLUs in all their forms."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tensorpress as tp
from tensorpress.reconstruct.layerwise import Reconstruct


def few_patterns(count: int, seed: int) -> Tensor:
    """Images with few patterns, so that responses matter other than weights."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    return torch.einsum("np,pchw->nchw", torch.randn(count, 4, generator=generator), patterns)


@pytest.fixture
def trained() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8),
    )  # fmt: skip
    for _ in range(40):
        net(few_patterns(64, seed=9))
    return net.eval()


@torch.no_grad()
def statistics(model: nn.Sequential, end: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of what a part of a model puts out."""
    channels = model[:end](few_patterns(500, seed=1)).movedim(1, 0).flatten(1)
    return channels.mean(1), channels.var(1)


@pytest.mark.parametrize("kind", ["norms", "inputs"])
def test_norms_get_the_statistics_of_what_the_pressed_model_gives_them(
    trained: nn.Sequential, kind: Reconstruct
) -> None:
    """As far as the pressed model's have moved on calibration data, so have those of the norms."""
    plan = tp.plan(trained, scheme="channel_svd", overrides={"0": {"ranks": 2}, "3": {"ranks": 2}})
    data = [few_patterns(500, seed=1)]
    pressed = tp.press(trained, plan, calibration=data, reconstruct=kind)
    for place in (1, 4):
        (mean, variance), (new_mean, new_variance) = (
            statistics(model, place) for model in (trained, pressed)
        )
        norm, before = pressed[place], trained[place]
        moved = norm.running_mean - before.running_mean
        assert float((new_variance / variance).log().abs().max()) > 0.05
        torch.testing.assert_close(moved, new_mean - mean, atol=2e-2, rtol=2e-2)
        ratio = norm.running_var / before.running_var
        torch.testing.assert_close(ratio, new_variance / variance, atol=0, rtol=2e-2)


class Net(nn.Module):
    """A layer and maybe a batch norm, an activation, and a last layer."""

    def __init__(self, first: nn.Sequential, activate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.activate, self.last = first, activate, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activate(self.first(x))
        found: Tensor = self.last(y.flatten(2).mean(2) if y.ndim > 2 else y)
        return found


def changed(x: Tensor) -> Tensor:
    x.relu_()
    return x


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "Tensor.relu_": Tensor.relu_,
    "torch.relu_": torch.relu_,
    "functional.relu_": functional.relu_,
    "functional.relu(inplace=True)": lambda x: functional.relu(x, inplace=True),
    "nn.ReLU(inplace=True)": nn.ReLU(inplace=True),
    "a value that is changed": changed,
}
FIRST: dict[str, Callable[[], nn.Sequential]] = {
    "Linear": lambda: nn.Sequential(nn.Linear(12, 8)),
    "Conv2d": lambda: nn.Sequential(nn.Conv2d(3, 8, 3)),
    "Conv2d and norm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
    "channels last": lambda: nn.Sequential(nn.Conv2d(3, 8, 3)),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("form", IN_PLACE)
def test_a_relu_in_place_is_a_relu(
    form: str, first: str, kind: Reconstruct, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(200, 12) if first == "Linear" else few_patterns(200, seed=3)
    if first == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    caplog.set_level(logging.INFO, "tensorpress.press")
    states = []
    for activate in (torch.relu, IN_PLACE[form]):
        torch.manual_seed(0)
        model = Net(FIRST[first](), activate).eval()
        plan = tp.plan(model, scheme="channel_svd", overrides={"first.0": {"ranks": 3}})
        states.append(tp.press(model, plan, calibration=[x], reconstruct=kind).state_dict())
    assert "fitted linearly" not in caplog.text
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "activate",
    [
        lambda x: x.mul_(2).relu_(),
        lambda x: x.sigmoid_(),
        lambda x: functional.hardtanh_(x),
        lambda x: functional.leaky_relu_(x),
        lambda x: torch.relu(x) + x,
    ],
)
def test_what_is_no_relu_alone_is_fitted_linearly(
    activate: Callable[[Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = Net(FIRST["Linear"](), activate).eval()
    caplog.set_level(logging.INFO, "tensorpress.press")
    plan = tp.plan(model, scheme="channel_svd", overrides={"first.0": {"ranks": 3}})
    x, pressed = torch.randn(200, 12), []
    for kind in ("linear", "nonlinear"):
        caplog.clear()
        pressed.append(tp.press(model, plan, calibration=[x], reconstruct=kind))
    assert "layer first.0: fitted linearly" in caplog.text
    for value, expected in zip(pressed[1].parameters(), pressed[0].parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
