"""Initial values of a pressed layer: factors of its weight, random factors, or none."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorpress.schemes.chain_builder import dense_layer
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.parametrization import FactorizedWeight, Factors
from tensorpress.schemes.pressed_layer import (
    copy_bias,
    copy_requires_grad,
    layer_factors,
    pressed_form,
)


@dataclass(frozen=True)
class StartValues:
    """Initial values of a pressed layer.

    Attributes
    ----------
    factors : tuple of Tensor
        The factors, in the order of the layer's parameters, followed by its buffers.
    error : float or None
        The relative error of the composed weight, None if it is unknown.
    bias : Tensor or None
        The bias, None to take the bias of the dense layer.
    unfitted : str or None
        Why the layer was not fitted to calibration data; None if it was, or there were none.
    """

    factors: Factors
    error: float | None = None
    bias: Tensor | None = None
    unfitted: str | None = None


def decompose_weight(plan: LayerPlan, weight: Tensor) -> StartValues:
    """Decompose the weight of one layer, as torch stores it.

    Raises
    ------
    InvalidArgumentError
        If the scheme cannot take the weight.
    """
    pressed = press_one_layer(plan, weight)
    form = pressed_form(pressed)
    error = None if form is None else form.relative_error
    return StartValues(tuple(value.detach() for value in factor_values(pressed)), error)


def press_one_layer(plan: LayerPlan, weight: Tensor) -> nn.Module:
    """Return the layer of a plan pressed by its weight, with a zero bias if it has one."""
    layer = dense_layer(plan.spec, like=weight.new_empty(0, device="meta"))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if plan.spec.bias:
        layer.bias = nn.Parameter(weight.new_zeros(plan.spec.outputs))
    return plan.method.press(layer, plan.ranks, plan.spec)


def build_pressed(
    plan: LayerPlan, layer: nn.Module, values: StartValues | None, key: str = "weight"
) -> nn.Module:
    """Return the module that replaces a dense layer, uninitialized if there are no values.

    In weight form it is the layer itself, with its weight rebuilt from factors. In layer form it is
    a new module with the bias, mode, device and dtype of the layer.

    Parameters
    ----------
    plan : LayerPlan
        The plan of the layer.
    layer : nn.Module
        The dense layer.
    values : StartValues or None
        Initial values of the factors.
    key : str
        Name of the weight in the layer.
    """
    weight, bias = layer.get_parameter(key), layer._parameters.get("bias")
    pressed = plan.method.build(plan.spec, plan.ranks, like=weight.detach())
    form = pressed_form(pressed)
    assert form is not None
    form.relative_error = values.error if values else None
    form.unfitted = values.unfitted if values else None
    if isinstance(form, FactorizedWeight):
        # A view would keep the larger tensor behind it in memory and in files.
        factors = values.factors if values else layer_factors(pressed)
        copies = (f.detach().clone(memory_format=torch.contiguous_format) for f in factors)
        form.attach(layer, tuple(copies), key)
        if bias is not None and values is not None and values.bias is not None:
            with torch.no_grad():
                bias.copy_(values.bias)
        layer.get_submodule("parametrizations").train(layer.training)
        return layer
    if values is not None:
        with torch.no_grad():
            for tensor, value in zip(factor_values(pressed), values.factors, strict=True):
                tensor.copy_(value)
    if bias is not None:
        copy_bias(bias if values is None or values.bias is None else values.bias, pressed)
    copy_requires_grad(layer, pressed)
    return pressed.train(layer.training)


def factor_values(pressed: nn.Module) -> list[Tensor]:
    """Return the factors and the buffers of a pressed layer."""
    return [*layer_factors(pressed), *pressed.buffers()]
