"""ADA-Tucker and SCADA-Tucker: weights rebuilt from Tucker factors of their reshape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorpress.decompose.cp_tensor import max_cp_rank
from tensorpress.decompose.shared_core_tucker import shared_tucker
from tensorpress.decompose.spectrum import Spectrum, spectrum
from tensorpress.decompose.tucker import tucker_params
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.schemes.base import PlannedLayer, Ranks, Scheme, initial_std
from tensorpress.schemes.layer_spec import LayerSpec, Sizes, kernel_to_weight
from tensorpress.schemes.parametrization import Factors
from tensorpress.schemes.reshape_modes import (
    CORE_SHARE,
    MAX_ORDER,
    Shape,
    align_modes,
    balanced_modes,
    choose_modes,
    largest_core,
    smallest_params,
)
from tensorpress.schemes.tucker_weight import (
    TuckerWeight,
    balance_tucker,
    refuse_modes,
    refuse_ranks,
)
from tensorpress.schemes.weight_scheme import WeightScheme

ORIGINAL = "original"
"""What an entry may say for the weight's own axes as modes."""


@dataclass(frozen=True)
class AdaTucker(WeightScheme):
    """The weight of any layer, reshaped into modes, as a core and one matrix a mode.

    Parameters
    ----------
    modes : tuple of int
        Needed: a budget chooses them, or an entry for a layer says them.
    diagonal : bool
        Whether only the core's diagonal is there, which is CP (sec. 2.3).
    reduced : bool
        Whether the matrices are without the freedom of their bases; see `TuckerWeight`.

    References
    ----------
    Zhong, Wei, Lin, Zhang (2019), "ADA-Tucker: Compressing Deep Neural Networks via Adaptive
    Dimension Adjustment Tucker Decomposition".
    """

    modes: Sizes = ()
    diagonal: bool = False
    reduced: bool = False
    option_names: ClassVar[tuple[str, ...]] = ("modes", "diagonal", "reduced")
    of_weight: ClassVar[bool] = True
    joint: ClassVar[bool] = True

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse modes that are missing or do not fit the weight, and cores that exclude others."""
        if not self.modes:
            return "modes are needed: a budget chooses them"
        if self.reduced and (self.diagonal or self.shared):
            return "only matrices of a layer's own full core can be reduced"
        if self.diagonal and self.shared:
            return "a diagonal core is a layer's own: say ada_tucker as its scheme"
        return refuse_modes(spec.weight_shape, self.modes)

    def read_entry(
        self, spec: LayerSpec, options: Mapping[str, Any], ranks: Ranks
    ) -> tuple[Scheme, Ranks]:
        """Take the weight's own axes for "original"; align other modes, with their ranks, with it.

        Modes of layers that share a core may be fewer than its own: what is missing is 1.
        """
        modes = options.get("modes")
        if isinstance(modes, str) and modes != ORIGINAL:
            raise unknown_name("modes", modes, [ORIGINAL])
        shape = spec.weight_shape
        given = dict(options) | ({"modes": shape} if modes == ORIGINAL else {})
        method = super().read_entry(spec, given, ranks)[0]
        assert isinstance(method, AdaTucker)
        each = ranks if isinstance(ranks, Sequence) and not isinstance(ranks, str) else None
        sizes = method.modes
        if self.shared and each is not None and sizes:
            sizes += (1,) * (len(each) - len(sizes))
        if modes == ORIGINAL or method.refusal(spec) or len(sizes) != len(each or sizes):
            return replace(method, modes=sizes), ranks
        sizes, aligned = align_modes(
            shape, sizes, tuple(each or (1,) * len(sizes)), keep_ranks=self.shared
        )
        return replace(method, modes=sizes), aligned if each else ranks

    def allocate(
        self, specs: Mapping[str, LayerSpec], params: int
    ) -> dict[str, tuple[Scheme, Sizes]]:
        """Choose modes and ranks; layers that are too small to gain are left out."""
        shapes = {name: spec.weight_shape for name, spec in specs.items()}
        gaining = {n: shape for n, shape in shapes.items() if smallest_params(shape) < prod(shape)}
        if not gaining:
            return {}
        left = params - sum(prod(shape) for name, shape in shapes.items() if name not in gaining)
        chosen = self._chosen(gaining, left)
        return {name: (replace(self, modes=m), ranks) for name, (m, ranks) in chosen.items()}

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the modes, or of a diagonal core the rank at which any tensor is met."""
        if self.diagonal:
            return (max_cp_rank(self.modes),) * len(self.modes)
        return self.modes

    def check_ranks(self, spec: LayerSpec, ranks: Sizes) -> None:
        """Raise unless the modes can have such a core; drawn, it may exceed them."""
        core = "diagonal" if self.diagonal else "reduced" if self.reduced else "full"
        reason = refuse_ranks(self.modes, ranks, core)
        if reason is not None:
            raise InvalidArgumentError(reason)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings along the modes; a CP rank is of no matrix."""
        if self.diagonal:
            return ()
        whole = self.parametrization(spec, (1,) * len(self.modes))
        tensor = whole.reshaped(kernel_to_weight(kernel, spec))
        return tuple(spectrum(tensor.movedim(k, 0).flatten(1)) for k in range(tensor.ndim))

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the values of core and matrices, which a layer has beside its bias."""
        if self.diagonal:
            return ranks[0] * (1 + sum(self.modes))
        fixed = sum(k * k for k in ranks) if self.reduced else 0
        return tucker_params(self.modes, ranks) - fixed + spec.outputs * spec.bias

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return 0: those of the layer, of which only the weight is known, stay what they are."""
        return 0

    def peak_values(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the size of the largest tensor on the way from the core to the weight."""
        modes = self.modes
        if self.diagonal:
            half = (len(modes) + 1) // 2
            return max(ranks) * (1 + prod(modes[:half]) + prod(modes[half:]) + sum(modes))
        widest = prod(max(n, k) for n, k in zip(modes, ranks, strict=True))
        return max(widest, tucker_params(modes, ranks))

    def factor_name(self, number: int) -> str:
        """Return what a factor is called: the core comes first."""
        return f"matrix{number}" if number else "core"

    def parametrization(self, spec: LayerSpec, ranks: Sizes) -> TuckerWeight:
        """Return what rebuilds the weight."""
        return TuckerWeight(
            spec.weight_shape,
            self.modes,
            ranks,
            diagonal=self.diagonal,
            shared=self.shared,
            reduced=self.reduced,
        )

    def draw(
        self, spec: LayerSpec, ranks: Sizes, weight: Tensor, init: str, generator: torch.Generator
    ) -> Factors:
        """Draw core and matrices, of one deviation as far as that gives the weight its own."""
        tucker, std = self.parametrization(spec, ranks), initial_std(weight, init)
        core = tucker.draw_core(tucker.balanced_std(std), generator)
        return tucker.draw(std, core, weight, generator)

    def _chosen(self, shapes: Mapping[str, Shape], params: int) -> dict[str, tuple[Shape, Shape]]:
        return separate_cores(shapes, params)


@dataclass(frozen=True)
class ScadaTucker(AdaTucker):
    """ADA-Tucker with one core for all layers (sec. 2.4), the first factor of each."""

    shared: ClassVar[bool] = True

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the size of the weight for every mode: other layers may use what this cannot."""
        return (prod(self.modes),) * len(self.modes)

    def shared_params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the size of the core."""
        return prod(ranks)

    def decompose_together(
        self, layers: Sequence[PlannedLayer], weights: Sequence[Tensor]
    ) -> list[Factors]:
        """Fit core and matrices by `shared_tucker`."""
        tensors = [t.reshaped(w) for t, w in zip(_tuckers(layers), weights, strict=True)]
        fit = shared_tucker(tensors, layers[0].ranks)
        core, matrices = balance_tucker(fit.core, fit.factors)
        return [(core, *own) for own in matrices]

    def draw_together(
        self,
        layers: Sequence[PlannedLayer],
        weights: Sequence[Tensor],
        init: str,
        generators: Sequence[torch.Generator],
    ) -> list[Factors]:
        """Draw the core of the first layer, at the geometric mean of the deviations of all."""
        tuckers = _tuckers(layers)
        stds = [initial_std(weight, init) for weight in weights]
        core_stds = [tucker.balanced_std(std) for tucker, std in zip(tuckers, stds, strict=True)]
        cores = list(map(TuckerWeight.draw_core, tuckers, core_stds, generators))
        common = prod(std ** (1 / len(layers)) for std in core_stds)
        core = cores[0] * (common / core_stds[0])
        return [
            tucker.draw(std, core, weight, generator)
            for tucker, std, weight, generator in zip(
                tuckers, stds, weights, generators, strict=True
            )
        ]

    def _chosen(self, shapes: Mapping[str, Shape], params: int) -> dict[str, tuple[Shape, Shape]]:
        return common_core(shapes, params)


def _tuckers(layers: Sequence[PlannedLayer]) -> list[TuckerWeight]:
    """Return the parametrizations of layers with a core in common."""
    return [
        TuckerWeight(x.spec.weight_shape, x.method.options["modes"], x.ranks, shared=True)
        for x in layers
    ]


def separate_cores(shapes: Mapping[str, Shape], budget: int) -> dict[str, tuple[Shape, Shape]]:
    """Return modes and ranks of layers with cores of their own.

    Every layer gets a target proportional to the root of its size, the largest that fits. The
    exponent lies between those of the paper's tables: there parameters grow with the weight's
    size to the power 0.2 on LeNet-5 (166 times smaller) and 0.7 on the ResNets (4 to 19 times).
    """

    def at(factor: float) -> dict[str, tuple[Shape, Shape]]:
        chosen = {}
        for name, shape in shapes.items():
            target = min(max(int(factor * sqrt(prod(shape))), smallest_params(shape)), prod(shape))
            chosen[name] = choose_modes(shape, target)
        return chosen

    def stored(chosen: Mapping[str, tuple[Shape, Shape]]) -> int:
        return sum(tucker_params(*layer) for layer in chosen.values())

    if stored(at(0.0)) > budget:
        raise InvalidArgumentError(_unreachable(stored(at(0.0)), budget))
    low, high = 0.0, sqrt(max(map(prod, shapes.values())))
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if stored(at(middle)) <= budget else (low, middle)
    return at(low)


def common_core(shapes: Mapping[str, Shape], budget: int) -> dict[str, tuple[Shape, Shape]]:
    """Choose the order and shape of one core for all layers, by the rule for a single layer."""
    fitting: dict[int, tuple[float, Shape]] = {}
    modes = {
        order: {name: _padded_modes(prod(shape), order) for name, shape in shapes.items()}
        for order in range(2, MAX_ORDER + 1)
    }
    least = min(1 + sum(map(sum, sizes.values())) for sizes in modes.values())
    for order, sizes in modes.items():
        sums = [sum(column) for column in zip(*sizes.values(), strict=True)]
        ranks = largest_core(sums, budget)
        if ranks is not None:
            fitting[order] = (prod(ranks) / tucker_params(sums, ranks), ranks)
    if not fitting:
        raise InvalidArgumentError(_unreachable(least, budget))
    order = max(fitting, key=lambda order: (min(fitting[order][0], CORE_SHARE), -order))
    ranks = fitting[order][1]
    return {
        name: align_modes(shape, modes[order][name], ranks, keep_ranks=True)
        for name, shape in shapes.items()
    }


def _padded_modes(size: int, order: int) -> Shape:
    """Balanced modes of the order with the smallest sum, then ones up to the core's order."""
    options = (balanced_modes(size, own) + (1,) * (order - own) for own in range(1, order + 1))
    return min(options, key=sum)


def _unreachable(least: int, budget: int) -> str:
    return (
        f"the weights to be pressed need at least {least:,} parameters, but only {budget:,} are "
        "left for them once biases, norms and skipped layers are counted: "
        f"ask for at least {least - budget:,} more"
    )
