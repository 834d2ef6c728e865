"""Checks that a plan fits the model that is pressed by it."""

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
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.parametrization import factorized_weight
from tensorpress.schemes.pressed_layer import Pressed, layer_bias, weight_shape
from tensorpress.utils.formatting import format_shape
from tensorpress.utils.module_tree import count_references


def find_layer(model: nn.Module, layer: LayerPlan) -> nn.Module:
    """Return the layer of a model, dense or pressed, that a plan names.

    Raises
    ------
    ModelMismatchError
        If the model has no such layer, or a different one than the plan expects.
    InvalidArgumentError
        For ranks that do not fit the layer.
    """
    try:
        module = model.get_submodule(layer.name)
    except AttributeError:
        raise ModelMismatchError(
            f"the plan names a layer {layer.name!r}, which this model does not have"
        ) from None
    shape = weight_shape(module)
    if shape != layer.shape:
        actual = "no plain weight" if shape is None else f"a weight {format_shape(shape)}"
        raise ModelMismatchError(
            f"layer {layer.name!r} has {actual} in this model; the plan expects "
            f"{format_shape(layer.shape)}"
        )
    _check_spec(module, layer)
    try:
        layer.check()
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None
    return module


def check_plan(model: nn.Module, plan: Plan) -> None:
    """Raise an error if a plan does not fit a model, before any layer is pressed.

    Raises
    ------
    ModelMismatchError
        For what `find_layer` raises, for two names of one layer, for parts of a pressed layer, and
        for a layer that shares a parameter with another one.
    InvalidArgumentError
        For ranks that do not fit, hooks that would be lost, and weights without finite values.
    """
    parts = pressed_parts(model)
    references = count_references(model)
    names: dict[int, str] = {}
    for layer in plan.layers:
        module = find_layer(model, layer)
        first = names.setdefault(id(module), layer.name)
        if first != layer.name:
            raise ModelMismatchError(f"the plan's layers {first!r} and {layer.name!r} are one")
        if id(module) in parts:
            raise ModelMismatchError(
                f"layer {layer.name!r} is a part of {parts[id(module)]!r}, which is pressed: "
                "plan that one"
            )
        _check_ties(module, layer, references)
        if isinstance(module, Pressed):
            check_hooks(layer.name, module)
        _check_values(module, layer)


def _check_spec(module: nn.Module, layer: LayerPlan) -> None:
    try:
        if layer.method.of_weight or isinstance(module, Pressed):
            spec = layer.method.read_spec(module)
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


def _check_ties(module: nn.Module, layer: LayerPlan, references: Counter[int]) -> None:
    parameters = {"weight": module._parameters.get("weight")}
    if layer.method.form == "layer":  # the others leave the bias where it is
        parameters["bias"] = layer_bias(module)
    for kind, parameter in parameters.items():
        if parameter is not None and references[id(parameter)] > 1:
            raise ModelMismatchError(
                f"layer {layer.name!r} shares its {kind} with another one in this model: it cannot "
                "be pressed"
            )


def _check_values(module: nn.Module, layer: LayerPlan) -> None:
    bias = layer_bias(module)
    for parameter in module.parameters():
        kind = "bias" if parameter is bias else "weight"
        if parameter.is_meta:
            raise InvalidArgumentError(
                f"layer {layer.name!r} is on the meta device: it has no values"
            )
        if not bool(torch.isfinite(parameter).all()):
            raise InvalidArgumentError(
                f"layer {layer.name!r}: its {kind} has NaN or infinite values"
            )
