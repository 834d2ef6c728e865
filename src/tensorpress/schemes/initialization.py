"""What factors start from: the decomposed weight, a random draw, or nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from tensorpress.decompose.shared_core_tucker import shared_tucker
from tensorpress.schemes.base import keep_gradients, layer_bias
from tensorpress.schemes.chain_builder import dense_layer
from tensorpress.schemes.layer_plan import LayerPlan, PlannedLayer, SchemePlan
from tensorpress.schemes.parametrization import FactorizedWeight, Factors, factorized_weight
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.tucker_weight import TuckerWeight, balance_tucker, initial_std

_MOST_STEPS, _EXACT = 100, 1e-9
"""How often a draw is scaled at most, and how near to the deviation wanted is near enough."""


@dataclass(frozen=True)
class StartValues:
    """The factors of a layer, in the order of its parameters, and their relative error if known.

    After the factors come the buffers of layers that have some: choices of channels.
    ``bias`` is that of the layer where it is to be another one than the dense layer's.
    """

    factors: Factors
    error: float | None = None
    bias: Tensor | None = None


def decompose_weight(plan: PlannedLayer, weight: Tensor) -> StartValues:
    """Decompose one layer's weight, as torch holds it, by itself.

    Raises
    ------
    InvalidArgumentError
        Where the scheme cannot take the weight.
    """
    if isinstance(plan, LayerPlan):
        return StartValues(plan.parametrization().right_inverse(weight))
    pressed = press_one_layer(plan, weight)
    held = pressed if isinstance(pressed, Pressed) else factorized_weight(pressed)
    assert held is not None
    return StartValues(
        tuple(value.detach() for value in factor_values(pressed)), held.relative_error
    )


def press_one_layer(plan: SchemePlan, weight: Tensor) -> nn.Module:
    """Return the layer of a plan, pressed by its weight, with a bias of zeros if it has one."""
    layer = dense_layer(plan.spec, like=weight.new_empty(0, device="meta"))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if plan.spec.bias:
        layer.bias = nn.Parameter(weight.new_zeros(plan.spec.outputs))
    return scheme(plan.scheme).press(layer, plan.ranks)


def decompose_shared_core(
    plans: Sequence[LayerPlan], weights: Sequence[Tensor]
) -> list[tuple[LayerPlan, StartValues]]:
    """Decompose the weights of layers that share one core."""
    if not plans:
        return []
    tuckers = list(map(LayerPlan.parametrization, plans))
    tensors = [tucker.reshaped(weight) for tucker, weight in zip(tuckers, weights, strict=True)]
    fit = shared_tucker(tensors, tuckers[0].ranks)
    core, matrices = balance_tucker(fit.core, fit.factors)
    return [(plan, StartValues((core, *own))) for plan, own in zip(plans, matrices, strict=True)]


def draw_factors(
    plan: SchemePlan, weight: Tensor, start: str, generator: torch.Generator
) -> StartValues:
    """Draw all factors of a layer from one normal distribution.

    Their deviation is such that the weight they stand for has exactly the initializer's. ``weight``
    gives shape, dtype and device.
    """
    # In half precision a product of draws of deviation 1 might overflow.
    like = torch.empty(0, dtype=torch.float64)
    pressed = scheme(plan.scheme).skeleton(plan.spec, plan.ranks, like=like)
    factors = _factors(pressed)
    with torch.no_grad():
        for factor in factors:
            factor.copy_(torch.randn(factor.shape, generator=generator, device="cpu"))
        for part in pressed.modules():
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx].zero_()
        _scale(pressed, factors, plan, initial_std(weight, start))
        buffers = (buffer.to(weight.device) for buffer in pressed.buffers())
        return StartValues((*(factor.detach().to(weight) for factor in factors), *buffers))


def _scale(
    pressed: nn.Module, factors: Sequence[nn.Parameter], plan: SchemePlan, rms: float
) -> None:
    """Multiply all factors by one number, so that the weight has a root mean square."""
    for _ in range(_MOST_STEPS):
        found = float(scheme(plan.scheme).compose(pressed).square().mean().sqrt())
        if found == 0 or abs(found / rms - 1) < _EXACT:
            return
        # Exact for a product of all factors; a sum of products gets nearer with every step.
        for factor in factors:
            factor.mul_((rms / found) ** (1 / len(factors)))


def draw_shared_core(
    plans: Sequence[LayerPlan],
    weights: Sequence[Tensor],
    start: str,
    generators: Mapping[str, torch.Generator],
) -> list[tuple[LayerPlan, StartValues]]:
    """Draw the Tucker factors of layers, which may share a core.

    Each weight they stand for has the initializer's deviation. ``generators`` go by layer names.
    """
    tuckers = list(map(LayerPlan.parametrization, plans))
    streams = [generators[plan.name] for plan in plans]
    stds = [initial_std(weight, start) for weight in weights]
    core_stds = [tucker.balanced_std(std) for tucker, std in zip(tuckers, stds, strict=True)]
    cores = list(map(TuckerWeight.draw_core, tuckers, core_stds, streams))
    sharing = [i for i, tucker in enumerate(tuckers) if tucker.shared]
    if sharing:
        common = prod(core_stds[i] ** (1 / len(sharing)) for i in sharing)
        shared = cores[sharing[0]] * (common / core_stds[sharing[0]])
        cores = [shared if i in sharing else core for i, core in enumerate(cores)]
    return [
        (plan, StartValues(tucker.draw(std, core, weight, stream)))
        for plan, tucker, std, core, weight, stream in zip(
            plans, tuckers, stds, cores, weights, streams, strict=True
        )
    ]


def build_pressed(plan: PlannedLayer, layer: nn.Module, values: StartValues | None) -> nn.Module:
    """Return what stands in a dense layer's place, at the values it starts from or at any.

    In weight form that is the layer itself, whose weight is then rebuilt from factors; in layer
    form another one with its bias, mode, device and dtype.
    """
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    if isinstance(plan, LayerPlan):
        tucker = plan.parametrization()
        return _attached(tucker, layer, values.factors if values else _zeros(tucker, weight))
    pressed = scheme(plan.scheme).skeleton(plan.spec, plan.ranks, like=weight.detach())
    factors, held = _factors(pressed), factorized_weight(pressed)
    if held is not None:
        held.relative_error = values.error if values else None
        return _attached(held, layer, values.factors if values else factors)
    assert isinstance(pressed, Pressed)
    with torch.no_grad():
        if values is not None:
            pressed.relative_error = values.error
            for part, value in zip(factor_values(pressed), values.factors, strict=True):
                part.copy_(value)
        own = layer_bias(pressed)
        if own is not None and bias is not None:
            own.copy_(bias if values is None or values.bias is None else values.bias)
    keep_gradients(pressed, layer)
    return pressed.train(layer.training)


def _factors(pressed: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a pressed layer but its bias."""
    bias = layer_bias(pressed)
    return [parameter for parameter in pressed.parameters() if parameter is not bias]


def factor_values(pressed: nn.Module) -> list[Tensor]:
    """Return the factors, and what some layers hold beside them."""
    return [*_factors(pressed), *pressed.buffers()]


def _attached(held: FactorizedWeight, layer: nn.Module, factors: Sequence[Tensor]) -> nn.Module:
    # A part of a larger matrix would keep the whole of it in memory and in files.
    compact = (f.detach().clone(memory_format=torch.contiguous_format) for f in factors)
    held.attach(layer, tuple(compact))
    layer.get_submodule("parametrizations").train(layer.training)
    return layer


def _zeros(tucker: TuckerWeight, weight: Tensor) -> Factors:
    return tuple(map(weight.detach().new_zeros, (tucker.core_shape, *tucker.matrix_shapes)))
