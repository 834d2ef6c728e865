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
from tensorpress.schemes.canonical_kernel import kernel_to_weight
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.parametrization import Factors
from tensorpress.schemes.random_init import initial_std
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
from tensorpress.schemes.scheme import PlannedLayer, Ranks, Scheme
from tensorpress.schemes.tucker_weight import (
    TuckerWeight,
    balance_tucker,
    refuse_modes,
    refuse_ranks,
)
from tensorpress.schemes.weight_scheme import WeightScheme

ORIGINAL = "original"
"""Modes of an entry that stand for the axes of the weight."""

Choice = tuple[Shape, Shape]
"""Modes and ranks of a layer."""


@dataclass(frozen=True)
class AdaTucker(WeightScheme):
    """The weight of any layer, reshaped into modes, as a core and one matrix per mode.

    Parameters
    ----------
    modes : tuple of int
        Modes of the weight, chosen by a budget or set by an override for the layer.
    diagonal : bool
        Whether the core is diagonal, which makes it CP (sec. 2.3).
    reduced : bool
        Whether the redundant freedom of the matrices is removed; see `TuckerWeight`.

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
        """Refuse missing modes, modes that do not fit the weight, and contradictory options."""
        if not self.modes:
            return "it needs modes: set them, or let a budget choose them"
        if self.reduced and (self.diagonal or self.shared):
            return "reduced needs a full core that no other layer shares"
        if self.diagonal and self.shared:
            return "a diagonal core cannot be shared: use ada_tucker for this layer"
        return refuse_modes(spec.weight_shape, self.modes)

    def read_entry(
        self, spec: LayerSpec, options: Mapping[str, Any], ranks: Ranks
    ) -> tuple[Scheme, Ranks]:
        """Replace modes "original" by the axes of the weight; align other modes with these axes.

        A layer that shares a core may have fewer modes than the core: the missing modes are 1.
        """
        modes = options.get("modes")
        if isinstance(modes, str) and modes != ORIGINAL:
            raise unknown_name("modes", modes, [ORIGINAL])
        shape = spec.weight_shape
        values = dict(options) | ({"modes": shape} if modes == ORIGINAL else {})
        method = super().read_entry(spec, values, ranks)[0]
        assert isinstance(method, AdaTucker)
        core = ranks if isinstance(ranks, Sequence) and not isinstance(ranks, str) else None
        sizes = method.modes
        if self.shared and core is not None and sizes:
            sizes += (1,) * (len(core) - len(sizes))
        if modes == ORIGINAL or method.refusal(spec) or len(sizes) != len(core or sizes):
            return replace(method, modes=sizes), ranks
        sizes, aligned = align_modes(
            shape, sizes, tuple(core or (1,) * len(sizes)), keep_ranks=self.shared
        )
        return replace(method, modes=sizes), aligned if core else ranks

    def allocate(
        self, specs: Mapping[str, LayerSpec], params: int
    ) -> dict[str, tuple[Scheme, Sizes]]:
        """Choose modes and ranks of all layers that can become smaller."""
        shapes = {name: spec.weight_shape for name, spec in specs.items()}
        large = {n: shape for n, shape in shapes.items() if smallest_params(shape) < prod(shape)}
        if not large:
            return {}
        budget = params - sum(prod(shape) for name, shape in shapes.items() if name not in large)
        choices = self._choose_cores(large, budget)
        return {name: (replace(self, modes=m), ranks) for name, (m, ranks) in choices.items()}

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the modes, or for a diagonal core the largest CP rank of any tensor."""
        if self.diagonal:
            return (max_cp_rank(self.modes),) * len(self.modes)
        return self.modes

    def check_ranks(self, spec: LayerSpec, ranks: Sizes) -> None:
        """Raise an `InvalidArgumentError` unless a core of this shape fits the modes."""
        core = "diagonal" if self.diagonal else "reduced" if self.reduced else "full"
        reason = refuse_ranks(self.modes, ranks, core)
        if reason is not None:
            raise InvalidArgumentError(reason)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings along the modes; none for a diagonal core."""
        if self.diagonal:
            return ()
        weight = self.parametrization(spec, (1,) * len(self.modes))
        tensor = weight.reshape(kernel_to_weight(kernel, spec))
        return tuple(spectrum(tensor.movedim(k, 0).flatten(1)) for k in range(tensor.ndim))

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the number of entries of core, matrices and bias."""
        if self.diagonal:
            return ranks[0] * (1 + sum(self.modes))
        fixed = sum(k * k for k in ranks) if self.reduced else 0
        return tucker_params(self.modes, ranks) - fixed + spec.outputs * spec.bias

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return 0, because the layer keeps its multiply-accumulates and is not known here."""
        return 0

    def peak_values(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the size of the largest tensor between the core and the weight."""
        modes = self.modes
        if self.diagonal:
            half = (len(modes) + 1) // 2
            return max(ranks) * (1 + prod(modes[:half]) + prod(modes[half:]) + sum(modes))
        widest = prod(max(n, k) for n, k in zip(modes, ranks, strict=True))
        return max(widest, tucker_params(modes, ranks))

    def factor_name(self, number: int) -> str:
        """Return "core" for the first factor, and the number of the matrix for others."""
        return f"matrix{number}" if number else "core"

    def parametrization(self, spec: LayerSpec, ranks: Sizes) -> TuckerWeight:
        """Return the module that rebuilds the weight from core and matrices."""
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
        """Draw a core and matrices of similar standard deviation; see `TuckerWeight.draw`."""
        tucker, std = self.parametrization(spec, ranks), initial_std(weight, init)
        core = tucker.draw_core(tucker.balanced_std(std), generator)
        return tucker.draw(std, core, weight, generator)

    def _choose_cores(self, shapes: Mapping[str, Shape], budget: int) -> dict[str, Choice]:
        return choose_separate_cores(shapes, budget)


@dataclass(frozen=True)
class ScadaTucker(AdaTucker):
    """ADA-Tucker with one core, the first factor, shared by all layers (sec. 2.4)."""

    shared: ClassVar[bool] = True

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the size of the weight for every mode: other layers may need ranks above it."""
        return (prod(self.modes),) * len(self.modes)

    def shared_params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the size of the core."""
        return prod(ranks)

    def decompose_together(
        self, layers: Sequence[PlannedLayer], weights: Sequence[Tensor]
    ) -> list[Factors]:
        """Fit core and matrices by `shared_tucker`."""
        tensors = [t.reshape(w) for t, w in zip(_tucker_weights(layers), weights, strict=True)]
        tucker = shared_tucker(tensors, layers[0].ranks)
        core, layer_matrices = balance_tucker(tucker.core, tucker.factors)
        return [(core, *matrices) for matrices in layer_matrices]

    def draw_together(
        self,
        layers: Sequence[PlannedLayer],
        weights: Sequence[Tensor],
        init: str,
        generators: Sequence[torch.Generator],
    ) -> list[Factors]:
        """Draw a core with the geometric mean of the layers' deviations, and all matrices."""
        tuckers = _tucker_weights(layers)
        stds = [initial_std(weight, init) for weight in weights]
        core_stds = list(map(TuckerWeight.balanced_std, tuckers, stds))
        # Every generator draws a core, as without sharing, so that matrices match; the first is
        # used.
        cores = list(map(TuckerWeight.draw_core, tuckers, core_stds, generators))
        mean = prod(std ** (1 / len(layers)) for std in core_stds)
        core = cores[0] * (mean / core_stds[0])
        return [
            tucker.draw(std, core, weight, generator)
            for tucker, std, weight, generator in zip(
                tuckers, stds, weights, generators, strict=True
            )
        ]

    def _choose_cores(self, shapes: Mapping[str, Shape], budget: int) -> dict[str, Choice]:
        return choose_common_core(shapes, budget)


def _tucker_weights(layers: Sequence[PlannedLayer]) -> list[TuckerWeight]:
    return [
        TuckerWeight(x.spec.weight_shape, x.method.options["modes"], x.ranks, shared=True)
        for x in layers
    ]


def choose_separate_cores(shapes: Mapping[str, Shape], budget: int) -> dict[str, Choice]:
    """Choose modes and ranks of layers that share no core.

    The parameters of a layer grow with the square root of its size. The exponent lies between those
    in the paper's tables: 0.2 for LeNet-5 (166 times smaller) and 0.7 for ResNets (4 to 19 times).
    """

    def choose(factor: float) -> dict[str, Choice]:
        choices = {}
        for name, shape in shapes.items():
            target = min(max(int(factor * sqrt(prod(shape))), smallest_params(shape)), prod(shape))
            choices[name] = choose_modes(shape, target)
        return choices

    def params(factor: float) -> int:
        return sum(tucker_params(*choice) for choice in choose(factor).values())

    if params(0.0) > budget:
        raise _budget_error(params(0.0), budget)
    low, high = 0.0, sqrt(max(map(prod, shapes.values())))
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if params(middle) <= budget else (low, middle)
    return choose(low)


def choose_common_core(shapes: Mapping[str, Shape], budget: int) -> dict[str, Choice]:
    """Choose the order and shape of one core for all layers by the rule of `choose_modes`."""
    cores: dict[int, tuple[float, Shape]] = {}
    modes = {
        order: {name: _padded_modes(prod(shape), order) for name, shape in shapes.items()}
        for order in range(2, MAX_ORDER + 1)
    }
    for order, sizes in modes.items():
        sums = [sum(column) for column in zip(*sizes.values(), strict=True)]
        ranks = largest_core(sums, budget)
        if ranks is not None:
            cores[order] = (prod(ranks) / tucker_params(sums, ranks), ranks)
    if not cores:
        smallest = min(1 + sum(map(sum, sizes.values())) for sizes in modes.values())
        raise _budget_error(smallest, budget)
    order = max(cores, key=lambda order: (min(cores[order][0], CORE_SHARE), -order))
    ranks = cores[order][1]
    return {
        name: align_modes(shape, modes[order][name], ranks, keep_ranks=True)
        for name, shape in shapes.items()
    }


def _padded_modes(size: int, order: int) -> Shape:
    """Return the balanced modes of any order with the smallest sum, padded with ones."""
    options = (balanced_modes(size, k) + (1,) * (order - k) for k in range(1, order + 1))
    return min(options, key=sum)


def _budget_error(smallest: int, budget: int) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the weights to be pressed need at least {smallest:,} parameters, but biases, norms and "
        f"skipped layers leave only {budget:,}: raise the budget by at least "
        f"{smallest - budget:,}"
    )
