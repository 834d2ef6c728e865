"""Modes and ranks of (s)cada_tucker: from a number of parameters, or as given by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod, sqrt
from operator import index
from typing import Any, Literal

from tensorpress.decompose.tucker import tucker_params
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.schemes.layer_plan import Core, LayerPlan
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
from tensorpress.schemes.tucker_weight import TuckerWeight
from tensorpress.utils.formatting import format_shape

TUCKER_KEYS = ("modes", "ranks", "diagonal", "reduced", "scheme")
"""What an entry for a layer may say."""


def plan_given_modes(
    name: str, shape: Shape, scheme: str, options: Mapping[str, Any], itemsize: int
) -> LayerPlan:
    """Return the plan of a layer with hand-given modes and ranks.

    Raises
    ------
    InvalidArgumentError
        For keys that are unknown or missing, and modes or ranks that do not fit.
    """
    for key in options:
        if key not in TUCKER_KEYS:
            raise unknown_name("key", key, TUCKER_KEYS)
    for key in ("modes", "ranks"):
        if key not in options:
            raise InvalidArgumentError(f"{key} are needed")
    if isinstance(options["ranks"], str | float):
        raise InvalidArgumentError(
            f"ranks of modes are a list of numbers or one for all, not {options['ranks']!r}"
        )
    shaped = {key: value for key, value in options.items() if key != "scheme"}
    found = _given(name, shape, core="shared" if scheme == "scada_tucker" else "own", **shaped)
    return replace(found, itemsize=itemsize)


def check_shared(layers: Sequence[LayerPlan]) -> None:
    """Raise unless all layers that share a core name the same shape for it."""
    cores = {layer.ranks for layer in layers if layer.core == "shared"}
    if len(cores) > 1:
        raise InvalidArgumentError(
            "a shared core has one shape, but the layers name "
            f"{', '.join(sorted(map(format_shape, cores)))}"
        )


def _given(
    name: str,
    shape: Shape,
    *,
    modes: Sequence[int] | Literal["original"],
    ranks: Sequence[int] | int,
    core: Core,
    diagonal: bool = False,
    reduced: bool = False,
) -> LayerPlan:
    if isinstance(modes, str) and modes != "original":
        raise unknown_name("modes", modes, ["original"])
    sizes = shape if modes == "original" else tuple(map(index, modes))
    sides = (ranks,) * len(sizes) if isinstance(ranks, int) else tuple(map(index, ranks))
    TuckerWeight(
        shape,
        sizes + (1,) * (len(sides) - len(sizes) if core == "shared" else 0),
        sides,
        diagonal=diagonal,
        shared=core == "shared" and not diagonal,
        reduced=reduced,
    )
    if diagonal or reduced:
        core = "diagonal" if diagonal else "reduced"
    if core == "shared":
        sizes += (1,) * (len(sides) - len(sizes))
    if core == "own" and any(k > n for k, n in zip(sides, sizes, strict=True)):
        raise InvalidArgumentError(
            f"ranks {format_shape(sides)} exceed the modes {format_shape(sizes)}; only a "
            "shared core may be larger"
        )
    if modes != "original":
        sizes, sides = align_modes(shape, sizes, sides, keep_ranks=core == "shared")
    return LayerPlan(name, shape, sizes, sides, core)


def plan_separate_cores(shapes: Mapping[str, Shape], budget: int) -> list[LayerPlan]:
    """Give every layer a target proportional to the root of its size, the largest that fits.

    The exponent lies between those of the paper's tables: there parameters grow with the
    weight's size to the power 0.2 on LeNet-5 (166 times smaller) and 0.7 on the ResNets (4 to 19
    times).
    """

    def at(factor: float) -> list[LayerPlan]:
        found = []
        for name, shape in shapes.items():
            target = min(max(int(factor * sqrt(prod(shape))), smallest_params(shape)), prod(shape))
            found.append(LayerPlan(name, shape, *choose_modes(shape, target)))
        return found

    def stored(layers: list[LayerPlan]) -> int:
        return sum(layer.factor_params for layer in layers)

    if stored(at(0.0)) > budget:
        raise InvalidArgumentError(_unreachable(stored(at(0.0)), budget))
    low, high = 0.0, sqrt(max(map(prod, shapes.values())))
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if stored(at(middle)) <= budget else (low, middle)
    return at(low)


def plan_shared_core(shapes: Mapping[str, Shape], budget: int) -> list[LayerPlan]:
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
    return [
        LayerPlan(
            name, shape, *align_modes(shape, modes[order][name], ranks, keep_ranks=True), "shared"
        )
        for name, shape in shapes.items()
    ]


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
