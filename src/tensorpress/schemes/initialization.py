"""What factors start from: the decomposed weight, a random draw, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorpress.schemes.base import keep_gradients, layer_bias, layer_factors
from tensorpress.schemes.chain_builder import dense_layer
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.parametrization import FactorizedWeight, Factors
from tensorpress.schemes.pressed_layer import pressed_form


@dataclass(frozen=True)
class StartValues:
    """The factors of a layer, in the order of its parameters, and their relative error if known.

    After the factors come the buffers of layers that have some: choices of channels.
    ``bias`` is that of the layer where it is to be another one than the dense layer's.
    """

    factors: Factors
    error: float | None = None
    bias: Tensor | None = None


def decompose_weight(plan: LayerPlan, weight: Tensor) -> StartValues:
    """Decompose one layer's weight, as torch holds it, by itself.

    Raises
    ------
    InvalidArgumentError
        Where the scheme cannot take the weight.
    """
    pressed = press_one_layer(plan, weight)
    form = pressed_form(pressed)
    error = None if form is None else form.relative_error
    return StartValues(tuple(value.detach() for value in factor_values(pressed)), error)


def press_one_layer(plan: LayerPlan, weight: Tensor) -> nn.Module:
    """Return the layer of a plan, pressed by its weight, with a bias of zeros if it has one."""
    layer = dense_layer(plan.spec, like=weight.new_empty(0, device="meta"))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if plan.spec.bias:
        layer.bias = nn.Parameter(weight.new_zeros(plan.spec.outputs))
    return plan.method.press(layer, plan.ranks)


def build_pressed(plan: LayerPlan, layer: nn.Module, values: StartValues | None) -> nn.Module:
    """Return what stands in a dense layer's place, at the values it starts from or at any.

    In weight form that is the layer itself, whose weight is then rebuilt from factors; in layer
    form another one with its bias, mode, device and dtype.
    """
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    pressed = plan.method.build(plan.spec, plan.ranks, like=weight.detach())
    form = pressed_form(pressed)
    assert form is not None
    form.relative_error = values.error if values else None
    if isinstance(form, FactorizedWeight):
        return _attached(form, layer, values.factors if values else layer_factors(pressed))
    with torch.no_grad():
        if values is not None:
            for part, value in zip(factor_values(pressed), values.factors, strict=True):
                part.copy_(value)
        own = layer_bias(pressed)
        if own is not None and bias is not None:
            own.copy_(bias if values is None or values.bias is None else values.bias)
    keep_gradients(pressed, layer)
    return pressed.train(layer.training)


def factor_values(pressed: nn.Module) -> list[Tensor]:
    """Return the factors, and what some layers hold beside them."""
    return [*layer_factors(pressed), *pressed.buffers()]


def _attached(form: FactorizedWeight, layer: nn.Module, factors: Sequence[Tensor]) -> nn.Module:
    # A part of a larger matrix would keep the whole of it in memory and in files.
    compact = (f.detach().clone(memory_format=torch.contiguous_format) for f in factors)
    form.attach(layer, tuple(compact))
    layer.get_submodule("parametrizations").train(layer.training)
    return layer
