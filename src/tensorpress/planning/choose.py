"""Planning: from a scheme and hand-given shapes or a number of parameters to a plan."""

from collections.abc import Mapping, Sequence
from math import prod, sqrt
from operator import index
from typing import Any, Literal

from torch import nn

from tensorpress.decompose.tucker import tucker_params
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.planning.layers import matching, pressable
from tensorpress.planning.plan import SCHEMES, Core, LayerPlan, Plan
from tensorpress.schemes.dimensions import (
    CORE_SHARE,
    MAX_ORDER,
    Shape,
    aligned,
    balanced_modes,
    by,
    choose,
    largest_core,
    smallest,
)
from tensorpress.schemes.tucker_weight import TuckerWeight

LAYER_KEYS = ("modes", "ranks", "diagonal")
"""What a hand-given layer may say."""


def plan(
    model: nn.Module,
    *,
    scheme: str = "ada_tucker",
    params: int | None = None,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    skip: Sequence[str] = (),
) -> Plan:
    """Plan how a model's weights are decomposed, without computing anything.

    Parameters
    ----------
    model : nn.Module
        Any model; its layers with a floating weight of two or more axes can be pressed.
    scheme : {"ada_tucker", "scada_tucker"}
        A core a layer, or one core shared by all layers.
    params : int, optional
        Parameters the whole pressed model may have, biases and norms included; modes and ranks are
        chosen (`tensorpress.schemes.dimensions`). Either this or ``layers`` is needed.
    layers : mapping of str to mapping, optional
        Hand-given shapes: a layer's name, or a pattern with ``*``, to ``modes`` (a list of
        sizes, or "original" for the weight's own axes), ``ranks`` (a list, or one number for
        all modes) and optionally ``diagonal: true`` (CP). Where two
        entries name a layer, the later one holds. Other layers stay dense.
    skip : sequence of str
        Names or patterns of layers to keep dense.

    Raises
    ------
    InvalidArgumentError
        For an unknown scheme, a pattern that matches no layer, modes or ranks that do not fit, or
        a budget that cannot be met.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))
    >>> plan(net, params=3000).params <= 3000
    True
    """
    if scheme not in SCHEMES:
        raise unknown_name("scheme", scheme, SCHEMES)
    shapes, kept = pressable(model)
    for pattern in skip:
        named = matching(pattern, {**shapes, **kept}, kept)
        kept = dict.fromkeys(named, f"skipped by {pattern!r}") | kept
    shapes = {name: shape for name, shape in shapes.items() if name not in kept}
    total = sum(p.numel() for p in model.parameters())
    if params is not None and layers is None:
        tiny = [name for name, shape in shapes.items() if smallest(shape) >= prod(shape)]
        kept |= dict.fromkeys(tiny, "too small to be made smaller")
        shapes = {name: shape for name, shape in shapes.items() if name not in tiny}
        budget = params - (total - sum(map(prod, shapes.values())))
        if not shapes:
            reasons = "".join(f"; {name!r}: {reason}" for name, reason in kept.items())
            raise InvalidArgumentError(f"the model has no layer that can be pressed{reasons}")
        chosen = (_shared_layers if scheme == "scada_tucker" else _own_layers)(shapes, budget)
    elif layers is not None and params is None:
        chosen = _given_layers(shapes, kept, layers, scheme)
        planned = {layer.name for layer in chosen}
        kept |= {name: "not named in layers" for name in shapes if name not in planned}
    else:
        raise InvalidArgumentError("a plan needs either params or layers: a number, or shapes")
    other = total - sum(layer.dense_params for layer in chosen)
    return Plan(scheme, tuple(chosen), kept, other)


def _given_layers(
    shapes: Mapping[str, Shape],
    kept: Mapping[str, str],
    layers: Mapping[str, Mapping[str, Any]],
    scheme: str,
) -> list[LayerPlan]:
    core: Core = "shared" if scheme == "scada_tucker" else "own"
    given: dict[str, Mapping[str, Any]] = {}
    for pattern, shape in layers.items():
        given |= dict.fromkeys(matching(pattern, shapes, kept), shape)
    chosen: dict[str, LayerPlan] = {}
    for name, options in given.items():
        try:
            _check_keys(options)
            chosen[name] = _given_layer(name, shapes[name], core=core, **options)
        except (InvalidArgumentError, TypeError) as error:
            raise InvalidArgumentError(f"layer {name!r}: {error}") from None
    ordered = [chosen[name] for name in shapes if name in chosen]
    cores = {layer.ranks for layer in ordered if layer.core == "shared"}
    if len(cores) > 1:
        raise InvalidArgumentError(
            f"a shared core has one shape, but the layers name {', '.join(sorted(map(by, cores)))}"
        )
    return ordered


def _check_keys(given: Mapping[str, Any]) -> None:
    for key in given:
        if key not in LAYER_KEYS:
            raise unknown_name("key", key, LAYER_KEYS)
    for key in ("modes", "ranks"):
        if key not in given:
            raise InvalidArgumentError(f"{key} are needed")


def _given_layer(
    name: str,
    shape: Shape,
    *,
    modes: Sequence[int] | Literal["original"],
    ranks: Sequence[int] | int,
    core: Core,
    diagonal: bool = False,
) -> LayerPlan:
    if isinstance(modes, str) and modes != "original":
        raise unknown_name("modes", modes, ["original"])
    sizes = shape if modes == "original" else tuple(map(index, modes))
    sides = (ranks,) * len(sizes) if isinstance(ranks, int) else tuple(map(index, ranks))
    if diagonal:
        core = "diagonal"
    if core == "shared":
        sizes += (1,) * (len(sides) - len(sizes))
    TuckerWeight(shape, sizes, sides, diagonal=diagonal)
    if core == "own" and any(k > n for k, n in zip(sides, sizes, strict=True)):
        raise InvalidArgumentError(
            f"ranks {by(sides)} exceed the modes {by(sizes)}; only a shared core may be larger"
        )
    if modes != "original":
        sizes, sides = aligned(shape, sizes, sides, keep_ranks=core == "shared")
    return LayerPlan(name, shape, sizes, sides, core)


def _own_layers(shapes: Mapping[str, Shape], budget: int) -> list[LayerPlan]:
    """Give every layer a target proportional to the root of its size, the largest that fits.

    The exponent lies between those of the paper's tables: there parameters grow with the
    weight's size to the power 0.2 on LeNet-5 (166 times smaller) and 0.7 on the ResNets (4 to 19
    times).
    """

    def at(factor: float) -> list[LayerPlan]:
        found = []
        for name, shape in shapes.items():
            target = min(max(int(factor * sqrt(prod(shape))), smallest(shape)), prod(shape))
            found.append(LayerPlan(name, shape, *choose(shape, target)))
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


def _shared_layers(shapes: Mapping[str, Shape], budget: int) -> list[LayerPlan]:
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
            name, shape, *aligned(shape, modes[order][name], ranks, keep_ranks=True), "shared"
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
