"""The layers that a plan names, in the model that it is carried out on."""

from collections import Counter
from copy import deepcopy
from dataclasses import fields

import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.planning.plan import Plan
from tensorpress.press.unpress import check_hooks, rebuild_dense
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import LayerSpec, describe_layer
from tensorpress.schemes.parametrization import factorized_weight
from tensorpress.schemes.pressed_layer import Pressed, layer_bias, weight_shape
from tensorpress.schemes.scheme import Scheme
from tensorpress.utils.formatting import format_shape
from tensorpress.utils.module_tree import count_references


def find_layer(model: nn.Module, layer: LayerPlan) -> nn.Module:
    """Return the layer that a plan names, dense or pressed.

    Raises
    ------
    ModelMismatchError
        Where it is not there, or another one than the plan expects.
    InvalidArgumentError
        For ranks that do not fit it.
    """
    try:
        module = model.get_submodule(layer.name)
    except AttributeError:
        raise ModelMismatchError(
            f"the plan names a layer {layer.name!r}, which this model does not have"
        ) from None
    shape = weight_shape(module)
    if shape != layer.shape:
        found = "no plain weight" if shape is None else f"a weight {format_shape(shape)}"
        raise ModelMismatchError(
            f"layer {layer.name!r} has {found} in this model; the plan expects "
            f"{format_shape(layer.shape)}"
        )
    _check_spec(module, layer)
    try:
        layer.check()
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None
    return module


def check_plan(model: nn.Module, plan: Plan) -> None:
    """Raise unless a plan can be carried out on a model, as far as that shows beforehand.

    Raises
    ------
    ModelMismatchError
        For what `find_layer` raises, and for layers that are one, are parts of pressed ones or hold
        parameters that others hold as well.
    InvalidArgumentError
        For ranks that do not fit, hooks that would be lost, and values that are not there or not
        finite.
    """
    parts = _parts_of_pressed(model)
    held_by = count_references(model)
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
        _check_ties(module, layer, held_by)
        if isinstance(module, Pressed):
            check_hooks(layer.name, module)
        _check_values(module, layer)


def _check_spec(module: nn.Module, layer: LayerPlan) -> None:
    try:
        found = _spec(module, layer.method)
    except InvalidArgumentError as error:
        raise ModelMismatchError(f"layer {layer.name!r}: {error}") from None
    for field in fields(found):
        has, expected = getattr(found, field.name), getattr(layer.spec, field.name)
        if has != expected:
            raise ModelMismatchError(
                f"layer {layer.name!r} has {field.name} {has!r} in this model; the plan expects "
                f"{expected!r}"
            )


def _spec(module: nn.Module, scheme: Scheme) -> LayerSpec:
    if scheme.of_weight or isinstance(module, Pressed):
        return scheme.read_spec(module)
    return describe_layer(
        module if factorized_weight(module) is None else rebuild_dense(deepcopy(module))
    )


def _parts_of_pressed(model: nn.Module) -> dict[int, str]:
    """Return the names of pressed layers, by the ids of the modules they are made of."""
    return {
        id(part): name
        for name, module in model.named_modules()
        if isinstance(module, Pressed)
        for part in module.modules()
        if part is not module
    }


def _check_ties(module: nn.Module, layer: LayerPlan, held_by: Counter[int]) -> None:
    parameters = {"weight": module._parameters.get("weight")}
    if layer.method.form == "layer":  # the others leave the bias where it is
        parameters["bias"] = layer_bias(module)
    for kind, parameter in parameters.items():
        if parameter is not None and held_by[id(parameter)] > 1:
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
