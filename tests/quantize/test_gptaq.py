from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, collect_batches
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.codec.static_tables import entropy_bits
from tensorpress.quantize.gptaq import round_in_order


def deep() -> nn.Sequential:
    """Layers of all kinds, whose rounding errors pass on: a bias, a norm, neither; groups."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10)),
    )
    nn.init.uniform_(net[1].running_mean, -0.5, 0.5)
    nn.init.uniform_(net[1].running_var, 0.2, 2)
    return net.eval()


def images(count: int, seed: int) -> Tensor:
    coarse = torch.randn(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    result: Tensor = nn.functional.interpolate(coarse, size=8, mode="bilinear")
    return result


def collect(net: nn.Module, count: int = 192) -> list[Batch]:
    return collect_batches(images(count, 0).split(64), net)


def layers_of(net: nn.Module) -> dict[str, Tensor]:
    kinds = (nn.Conv2d, nn.Linear)
    return {n: m.weight.detach() for n, m in net.named_modules() if isinstance(m, kinds)}


def quantizers(net: nn.Module, step: float) -> dict[str, StepQuantizer]:
    return {
        name: StepQuantizer.nearest(step * float(weight.square().mean().sqrt()))
        for name, weight in layers_of(net).items()
    }


@torch.no_grad()
def distance(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    return float((other(x) - net(x)).square().sum() / net(x).square().sum())


def test_weights_become_levels_and_errors_before_are_made_up_for() -> None:
    dense = deep()
    steps, nearest, result = quantizers(dense, 1.0), deepcopy(dense), deepcopy(dense)
    rounded = round_in_order(result, dense, steps, collect(dense), seed=0)
    assert list(rounded) == list(layers_of(dense))
    for name, weight in layers_of(result).items():
        assert torch.equal(weight, steps[name].values(rounded[name].symbols))
        nearest.get_submodule(name).weight.data = steps[name](layers_of(dense)[name])
    unseen = images(100, 1)
    assert distance(dense, result, unseen) < 0.4 * distance(dense, nearest, unseen)


def test_fine_steps_leave_the_model_as_it_was() -> None:
    dense, x = deep(), images(20, 1)
    model = deepcopy(dense)
    rounded = round_in_order(model, dense, quantizers(dense, 1e-3), collect(dense), seed=0)
    assert distance(dense, model, x) < 1e-6
    assert all(one.squared_error < 1e-6 * one.squared_norm for one in rounded.values())


def test_the_loss_is_that_of_responses_to_what_is_left() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    model, x = deepcopy(dense), torch.randn(300, 6)
    rounded = round_in_order(
        model, dense, quantizers(dense, 0.7), collect_batches([x], dense), seed=0
    )
    with torch.no_grad():
        errors = (model(x) - dense(x)).square().sum(1).mean()
        size = (dense(x) - dense[2].bias).square().sum(1).mean()
    assert rounded["2"].squared_error == pytest.approx(float(errors), rel=1e-4)
    assert rounded["2"].squared_norm == pytest.approx(float(size), rel=1e-4)


class Tangled(nn.Module):
    """One layer is called twice, and which of two others comes first depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.twice(self.once(x)))
        return self.left(self.right(y)) if x[0, 0] > 0 else self.right(self.left(y))


def test_layers_that_have_no_one_place_are_left() -> None:
    torch.manual_seed(0)
    dense, ones = Tangled(), torch.ones(8, 4)
    model = deepcopy(dense)
    one_way = collect_batches([ones * torch.randn(8, 4).abs()], dense)
    result = round_in_order(model, dense, quantizers(dense, 0.5), one_way, seed=0)
    assert list(result) == ["once", "right", "left"]
    assert torch.equal(model.twice.weight, dense.twice.weight)
    assert (
        round_in_order(
            model, dense, quantizers(dense, 0.5), collect_batches([ones, -ones], dense), 0
        )
        == {}
    )


def test_a_price_saves_bits() -> None:
    dense = deep()
    bits = []
    for price in (0.0, 0.2):
        result = round_in_order(
            deepcopy(dense), dense, quantizers(dense, 1.0), collect(dense), seed=0, price=price
        )
        bits.append(sum(one.symbols.numel() * entropy_bits(one.symbols) for one in result.values()))
    assert bits[1] < 0.95 * bits[0]
