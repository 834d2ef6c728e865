"""Checks that a plan fits a model."""

from collections import Counter
from copy import deepcopy
from dataclasses import fields

import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.planning.layers import pressed_parts
from tensorpress.planning.plan import Plan
from tensorpress.press.unpress import check_hooks, rebuild_dense
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import WEIGHT, describe_layer, parameter_spec
from tensorpress.schemes.parametrization import factorized_weight
from tensorpress.schemes.pressed_layer import Pressed, layer_bias, weight_shape
from tensorpress.utils.formatting import format_shape
from tensorpress.utils.module_tree import count_references, locate_weight


def find_layer(model: nn.Module, layer: LayerPlan) -> tuple[nn.Module, str]:
    """Return the module that a plan's layer names, dense or pressed, and the name of its weight.

    Raises
    ------
    ModelMismatchError
        If the model has no such layer, or the layer differs from the one in the plan.
    InvalidArgumentError
        If the ranks do not fit the layer.
    """
    try:
        module, key = locate_weight(model, layer.name)
    except AttributeError:
        raise ModelMismatchError(
            f"the plan names a layer {layer.name!r}, which this model does not have"
        ) from None
    shape = weight_shape(module, key)
    if shape != layer.shape:
        actual = "no weight of its own" if shape is None else f"a weight {format_shape(shape)}"
        raise ModelMismatchError(
            f"layer {layer.name!r} has {actual} in this model; the plan expects "
            f"{format_shape(layer.shape)}"
        )
    _check_spec(module, key, layer)
    try:
        layer.check()
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None
    return module, key


def check_plan(model: nn.Module, plan: Plan) -> None:
    """Raise an error if a plan does not fit a model, before any layer is pressed.

    Raises
    ------
    ModelMismatchError
        If a layer is missing or differs, is named twice, is part of a pressed layer, or shares a
        parameter with another layer.
    InvalidArgumentError
        If ranks do not fit, hooks would be lost, or a weight has no finite values.
    """
    parts = pressed_parts(model)
    references = count_references(model)
    names: dict[tuple[int, str], str] = {}
    for layer in plan.layers:
        module, key = find_layer(model, layer)
        first = names.setdefault((id(module), key), layer.name)
        if first != layer.name:
            raise ModelMismatchError(
                f"the plan's layers {first!r} and {layer.name!r} are the same layer of the model"
            )
        if id(module) in parts:
            raise ModelMismatchError(
                f"layer {layer.name!r} is part of the pressed layer {parts[id(module)]!r}: name "
                "that layer in the plan"
            )
        _check_ties(module, key, layer, references)
        if isinstance(module, Pressed):
            check_hooks(layer.name, module)
        _check_values(module, layer)


def _check_spec(module: nn.Module, key: str, layer: LayerPlan) -> None:
    try:
        if layer.method.of_weight or isinstance(module, Pressed):
            spec = layer.method.read_spec(module, key)
        elif layer.spec.kind == WEIGHT:
            spec = parameter_spec(module, layer.shape)
        else:
            dense = factorized_weight(module) is None
            spec = describe_layer(module if dense else rebuild_dense(deepcopy(module)))
    except InvalidArgumentError as error:
        raise ModelMismatchError(f"layer {layer.name!r}: {error}") from None
    for field in fields(spec):
        actual, expected = getattr(spec, field.name), getattr(layer.spec, field.name)
        if actual != expected:
            raise ModelMismatchError(
                f"layer {layer.name!r} has {field.name} {actual!r} in this model; the plan expects "
                f"{expected!r}"
            )


def _check_ties(module: nn.Module, key: str, layer: LayerPlan, references: Counter[int]) -> None:
    parameters = {"weight": module._parameters.get(key)}
    if layer.method.form == "layer":  # the others leave the bias where it is
        parameters["bias"] = layer_bias(module)
    for kind, parameter in parameters.items():
        if parameter is not None and references[id(parameter)] > 1:
            raise ModelMismatchError(
                f"layer {layer.name!r} shares its {kind} with another layer of this model and "
                "cannot be pressed"
            )


def _check_values(module: nn.Module, layer: LayerPlan) -> None:
    bias = layer_bias(module)
    for parameter in module.parameters():
        kind = "bias" if parameter is bias else "weight"
        if parameter.is_meta:
            raise InvalidArgumentError(
                f"layer {layer.name!r} is on the meta device, so its {kind} has no values"
            )
        if not bool(torch.isfinite(parameter).all()):
            raise InvalidArgumentError(
                f"layer {layer.name!r}: its {kind} has NaN or infinite values"
            )
