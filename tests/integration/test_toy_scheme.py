"""A scheme is one class and one line: two that live here alone do all that schemes can do."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from tiny_runs import recipe
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.cli.plan_output import print_plan
from tensorpress.decompose.spectrum import Spectrum, spectrum
from tensorpress.decompose.svd import truncated_svd
from tensorpress.errors import InvalidArgumentError
from tensorpress.models.zoo import build
from tensorpress.planning import plan_from_model
from tensorpress.press.zero_ranks import drop_zero_ranks
from tensorpress.runs.run import run
from tensorpress.schemes.canonical_kernel import kernel_to_weight
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.parametrization import FactorizedWeight, Factors, RankFactor
from tensorpress.schemes.pressed_layer import Composed, layer_factors
from tensorpress.schemes.registry import SCHEMES, register
from tensorpress.schemes.scheme import Scheme
from tensorpress.schemes.weight_scheme import WeightScheme


class ShiftedLayer(Composed):
    """A Linear as B·A + c: of low rank but for one number that all entries have in common."""

    last_places = (1, 2)

    def __init__(self, spec: LayerSpec, ranks: Sizes, *, scheme: str, like: Tensor) -> None:
        super().__init__()
        self.spec, self.ranks, self.scheme = spec, ranks, scheme
        self.a = nn.Parameter(like.new_empty(ranks[0], spec.inputs))
        self.b = nn.Parameter(like.new_empty(spec.outputs, ranks[0]))
        self.c = nn.Parameter(like.new_empty(1, 1))
        self.offset = nn.Parameter(like.new_empty(spec.outputs)) if spec.bias else None

    def forward(self, x: Tensor) -> Tensor:
        low_rank = nn.functional.linear(nn.functional.linear(x, self.a), self.b, self.offset)
        return low_rank + self.c[0] * x.sum(-1, keepdim=True)

    def bias_parameter(self) -> nn.Parameter | None:
        return self.offset

    def kernels(self) -> list[Tensor]:
        return [part[None] for part in (self.a, self.b, self.c)]

    def put(self, kernels: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for own, kernel in zip(self.kernels(), kernels, strict=True):
                own.copy_(kernel)

    def balance(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        return list(kernels)

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        a, b, c = kernels
        return b @ a + c

    def rank_factors(self) -> list[RankFactor]:
        a, b, c = (kernel.detach() for kernel in self.kernels())
        return [RankFactor(a, {1: 0}), RankFactor(b, {2: 0}), RankFactor(c, {})]


class MatrixScheme(Scheme):
    """What both toys say of their one rank."""

    def refusal(self, spec: LayerSpec) -> str | None:
        return None if spec.kind == "Linear" else "it is no Linear"

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        return (min(spec.inputs, spec.outputs),)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        return (spectrum(kernel),)


@dataclass(frozen=True)
class Shifted(MatrixScheme):
    """Other layers in a layer's place, with an option: from which number c starts."""

    shift: float = 0.0
    option_names: ClassVar[tuple[str, ...]] = ("shift",)

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        return ranks[0] * (spec.inputs + spec.outputs) + 1 + spec.outputs * spec.bias

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        return prod(sizes) * (ranks[0] * (spec.inputs + spec.outputs) + spec.outputs)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> ShiftedLayer:
        return ShiftedLayer(spec, ranks, scheme=self.name, like=like)

    def decompose(
        self,
        layer: nn.Module,
        spec: LayerSpec,
        kernel: Tensor,
        ranks: Sizes,
        spectra: Sequence[Spectrum],
    ) -> ShiftedLayer:
        pressed = self.skeleton(spec, ranks, like=layer.get_parameter("weight"))
        svd = truncated_svd(kernel[0] - self.shift, ranks[0])
        shift = kernel.new_full((1, 1, 1), self.shift)
        pressed.put([(svd.v * svd.s).mT[None], svd.u[None], shift])
        if pressed.offset is not None:
            pressed.offset.data.copy_(layer.get_parameter("bias"))
        gap = kernel - pressed.compose([part.to(kernel) for part in pressed.kernels()])
        pressed.relative_error = float(gap.detach().norm() / kernel.norm())
        return pressed


class HalvedWeight(FactorizedWeight):
    """The two halves of a weight, each of low rank: with the rank in common."""

    def __init__(self, shape: Sizes, ranks: Sizes, axis: int) -> None:
        super().__init__()
        self.shape, self.ranks, self.axis = shape, ranks, axis
        self.half = [n // 2 if k == axis else n for k, n in enumerate(shape)]

    @property
    def factor_shapes(self) -> list[tuple[int, ...]]:
        return [(n, self.ranks[0]) for n in self.half * 2]  # type: ignore[attr-defined]

    def forward(self, *factors: Tensor) -> Tensor:
        u, v, w, z = factors
        return torch.cat([u @ v.mT, w @ z.mT], self.axis)

    def decompose(self, weight: Tensor) -> Factors:
        halves = [truncated_svd(half, self.ranks[0]) for half in weight.chunk(2, self.axis)]
        return tuple(part for svd in halves for part in (svd.u * svd.s, svd.v))

    def rank_factors(self, factors: Sequence[Tensor]) -> list[RankFactor]:
        return [RankFactor(factor[None], {2: 0}) for factor in factors]


@dataclass(frozen=True)
class Halved(WeightScheme, MatrixScheme):
    """A weight rebuilt from factors, with an option: along which axis it is halved."""

    axis: int = 0
    option_names: ClassVar[tuple[str, ...]] = ("axis",)

    def refusal(self, spec: LayerSpec) -> str | None:
        odd = spec.kind == "Linear" and spec.weight_shape[self.axis] % 2
        return "its axis cannot be halved" if odd else super().refusal(spec)

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        return (min(HalvedWeight(spec.weight_shape, (1,), self.axis).half),)

    def parametrization(self, spec: LayerSpec, ranks: Sizes) -> HalvedWeight:
        return HalvedWeight(spec.weight_shape, ranks, self.axis)


OPTIONS: dict[str, dict[str, Any]] = {"shifted": {"shift": 0.01}, "halved": {"axis": 1}}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with patch.dict(SCHEMES):
        register(Shifted("shifted", "a matrix of low rank, and a number"))
        register(Halved("halved", "two matrices of low rank"))
        yield


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 10)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(64, 24, generator=torch.Generator().manual_seed(1))


def make(net: nn.Module, x: Tensor, name: str) -> tp.Plan:
    """Plan all layers by one rule, but the second with options and ranks of its own."""
    entry = {"2": {"ranks": 4, **OPTIONS[name]}}
    return tp.plan(net, x, scheme=name, ranks=0.2, overrides=entry)


both = pytest.mark.parametrize("name", OPTIONS)


@both
def test_it_is_planned_by_ranks_and_rules(net: nn.Sequential, x: Tensor, name: str) -> None:
    made = make(net, x, name)
    assert [layer.scheme for layer in made.layers] == [name] * 3
    assert made.layers[1].ranks == (4,)
    assert made.layers[1].options == OPTIONS[name]
    pressed = tp.press(net, made)
    assert tp.measure(pressed, x[:1]).params == made.params
    assert read_again(made) == made
    assert len(tp.plan(net, scheme=name, ranks="energy:0.5").layers) == 3
    with pytest.raises(InvalidArgumentError, match="layer '2': unknown key 'size'"):
        tp.plan(net, scheme=name, overrides={"2": {"ranks": 3, "size": 1}})


def read_again(made: tp.Plan) -> tp.Plan:
    return tp.Plan.from_dict(made.to_dict())


@both
@pytest.mark.parametrize("allocation", ["error", "uniform"])
def test_it_is_planned_within_a_budget(
    net: nn.Sequential, x: Tensor, name: str, allocation: str
) -> None:
    made = tp.plan(net, x, scheme=name, budget="params=60%", allocation=allocation)
    assert made.layers
    assert made.params <= 0.6 * made.dense_params
    chosen = tp.plan(net, x, scheme=("channel_svd", name), budget="params=60%")
    assert chosen.params <= 0.6 * chosen.dense_params


@both
@pytest.mark.parametrize("init", ["decompose", "kaiming"])
def test_it_is_pressed_and_unpressed(net: nn.Sequential, x: Tensor, name: str, init: Any) -> None:
    pressed = tp.press(net, make(net, x, name), init=init)
    assert plan_from_model(pressed).layers == make(net, x, name).layers
    dense = tp.unpress(pressed)
    assert [type(layer) for layer in dense] == [type(layer) for layer in net]  # type: ignore[attr-defined]
    torch.testing.assert_close(dense(x), pressed(x), rtol=1e-4, atol=1e-5)
    whole = tp.plan(net, scheme=name, overrides={"0": {"ranks": 1.0}})
    torch.testing.assert_close(tp.press(net, whole)(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["inputs", "linear", "nonlinear", "refit"])
def test_it_is_fitted_to_responses(net: nn.Sequential, x: Tensor, how: Any) -> None:
    narrow = x * torch.linspace(0.05, 2.0, 24)
    made = make(net, x, "shifted")
    plain, fitted = (
        tp.press(net, made, **given)
        for given in ({}, {"calibration": [narrow], "reconstruct": how})
    )
    assert plan_from_model(fitted).layers == made.layers
    plain_error, error = ((m(narrow) - net(narrow)).norm() for m in (plain, fitted))
    assert float(error.detach()) < 0.95 * float(plain_error.detach())


def test_a_rebuilt_weight_is_decomposed_where_others_are_fitted(
    net: nn.Sequential, x: Tensor
) -> None:
    made = make(net, x, "halved")
    plain, fitted = tp.press(net, made), tp.press(net, made, calibration=[x])
    assert all(map(torch.equal, plain.parameters(), fitted.parameters()))


@both
def test_ranks_of_zeros_are_dropped(net: nn.Sequential, x: Tensor, name: str) -> None:
    pressed = tp.press(net, make(net, x, name))
    with torch.no_grad():
        factors = layer_factors(pressed[2])
        if name == "shifted":
            factors[0][1] = 0
        else:
            for factor in factors[::2]:
                factor[:, 1] = 0
    before = pressed(x)
    assert drop_zero_ranks(pressed) == {"2": (3,)}
    torch.testing.assert_close(pressed(x), before, rtol=1e-4, atol=1e-5)
    assert plan_from_model(pressed).layers[1].options == OPTIONS[name]


@both
@pytest.mark.parametrize("network", [None, "lenet300100"])
def test_it_is_saved_and_loaded(tmp_path: Path, name: str, network: str | None) -> None:
    dense = build("lenet300100")
    entries = {"ip2": {"ranks": 3, **OPTIONS[name]}}
    made = tp.plan(dense, scheme=name, ranks=0.03, overrides=entries)
    pressed = tp.press(dense, made, init="kaiming").eval()
    tp.save(pressed, tmp_path / "a.tpz", network=network)
    again = tp.load(tmp_path / "a.tpz", None if network else dense)
    assert plan_from_model(again).layers == made.layers
    for key, value in pressed.state_dict().items():
        assert float((again.state_dict()[key] - value).norm()) <= 0.1 * float(value.norm())
    layers = tp.inspect(tmp_path / "a.tpz").layers
    assert [(layer.scheme, layer.options) for layer in layers][1] == (name, OPTIONS[name])


@both
def test_it_is_kept_in_a_checkpoint(
    tmp_path: Path, net: nn.Sequential, x: Tensor, name: str
) -> None:
    pressed = tp.press(net, make(net, x, name))
    tp.save_checkpoint(pressed, tmp_path / "folder")
    again = tp.load_checkpoint(tmp_path / "folder", deepcopy(net))
    assert torch.equal(again(x), pressed(x))
    assert plan_from_model(again).layers == plan_from_model(pressed).layers


@both
def test_it_is_in_tables_and_reports(
    tmp_path: Path, net: nn.Sequential, x: Tensor, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(net, x, name)
    print_plan(made)
    [(option, value)] = OPTIONS[name].items()
    assert name in capsys.readouterr().out
    assert f"4 {option} {value}" in str(made)
    press = {"scheme": name, "ranks": 0.1}
    result = run(recipe(press=press, dense={"epochs": 1, "lr": 0.01}), tmp_path / "run", seed=0)
    assert [row.scheme for row in result.content.layers][:2] == [name] * 2
    assert name in (result.folder / "report.html").read_text()


@both
def test_a_name_is_taken_once(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"the scheme {name!r} exists already"):
        register(Shifted(name, "again"))


def test_what_it_does_not_say_has_defaults(net: nn.Sequential) -> None:
    """Without `rank_factors` a layer keeps its ranks of zeros."""

    class Silent(ShiftedLayer):
        rank_factors = Composed.rank_factors

    pressed = tp.press_layer(net[0], "shifted", 3)
    pressed.__class__ = Silent
    with torch.no_grad():
        layer_factors(pressed)[0][1] = 0
    assert drop_zero_ranks(nn.Sequential(pressed)) == {}
    assert kernel_to_weight(pressed.compose(pressed.kernels()), pressed.spec).shape == (32, 24)
