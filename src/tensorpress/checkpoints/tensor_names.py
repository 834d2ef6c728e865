"""Names of tensors in a checkpoint, in its model and in the pressed checkpoint."""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorpress.checkpoints.meta_model import check_fits, tied_names
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.planning.plan import Plan
from tensorpress.press.press import build_skeleton
from tensorpress.schemes.initialization import decompose_weight
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.pressed_layer import layer_bias
from tensorpress.utils.formatting import format_names
from tensorpress.utils.module_tree import parameter_name


@dataclass(frozen=True)
class Route:
    """How one tensor of a dense model is pressed: copied, or as the weight of a pressed layer.

    Attributes
    ----------
    outputs : mapping of str to Tensor
        The resulting tensors in the pressed model's state by name, on the meta device.
    layer : LayerPlan or None
        The pressed layer whose weight the tensor is.
    """

    outputs: Mapping[str, Tensor]
    layer: LayerPlan | None = None


def route_tensors(dense: nn.Module, plan: Plan) -> dict[str, Route]:
    """Return the routes of the tensors in a dense model's state by name.

    Raises
    ------
    ModelMismatchError
        If the plan does not fit the model.
    InvalidArgumentError
        If layers share a core, which needs all of them in memory.
    """
    if plan.shared_core is not None:
        raise InvalidArgumentError(
            f"layers of {plan.scheme} share one core, so all must be in memory: load the model and "
            "press it instead"
        )
    pressed = build_skeleton(deepcopy(dense), plan)
    state = pressed.state_dict(keep_vars=True)
    others = {name: state[name] for name in tied_names(pressed)}
    routes = {}
    for layer in plan.layers:
        weight = parameter_name(dense, layer.name)
        if layer.method.form == "weight":
            module, _, key = weight.rpartition(".")
            prefix = f"{module}.parametrizations.{key}.".removeprefix(".")
            names = [name for name in others if name.startswith(prefix)]
            routes[weight] = Route({name: others.pop(name) for name in names}, layer)
            continue
        prefix = weight.removesuffix("weight")
        factors = {name: others.pop(name) for name in list(others) if name.startswith(prefix)}
        bias = layer_bias(pressed.get_submodule(layer.name))
        if bias is not None:
            name = next(name for name, tensor in factors.items() if tensor is bias)
            routes[f"{prefix}bias"] = Route({name: factors.pop(name)})
        routes[weight] = Route(factors, layer)
    return routes | {name: Route({name: tensor}) for name, tensor in others.items()}


def press_weight(dense: nn.Module, route: Route, weight: Tensor) -> dict[str, Tensor]:
    """Return the factors of one layer's weight, by their names in the pressed model's state.

    Parameters
    ----------
    dense : nn.Module
        The dense model on the meta device.
    route : Route
        The route of a layer's weight.
    weight : Tensor
        The values of the weight.

    Raises
    ------
    InvalidArgumentError
        If values are NaN or infinite; the message names the layer.
    """
    layer = route.layer
    assert layer is not None
    if layer.method.form == "weight":
        try:
            factors = decompose_weight(layer, weight).factors
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None
        return dict(zip(route.outputs, factors, strict=True))
    module = deepcopy(dense.get_submodule(layer.name))
    module.weight = nn.Parameter(weight, requires_grad=False)
    bias = module._parameters.get("bias")
    if bias is not None:  # The bias has a separate route, and no scheme reads its values.
        module.bias = nn.Parameter(torch.zeros_like(bias, device="cpu"), requires_grad=False)
    try:
        pressed = layer.method.press(module, layer.ranks).state_dict()
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None
    prefix = f"{layer.name}." if layer.name else ""
    return {name: pressed[name.removeprefix(prefix)] for name in route.outputs}


def match_tensor_names(model: nn.Module, files: TensorFiles) -> dict[str, str]:
    """Map the tensors of a checkpoint to their names in the model's state.

    Tied tensors map to the first of their names. The prefix of the base model (``transformer.``)
    may be missing in the checkpoint or in the model. Tensors that the model's class ignores are
    left out.

    Raises
    ------
    ModelMismatchError
        If a tensor is missing, is not in the model, or has another shape.
    """
    groups = tied_names(model)
    first_names = {name: first for first, names in groups.items() for name in names}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    # A class of transformers lists the tensors of old files that it does not use.
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    result, unknown = {}, []
    for name in files.tensors:
        spellings = (name, prefix + name, name.removeprefix(prefix))
        first = next((first_names[x] for x in spellings if x in first_names), None)
        if first is not None:
            result[name] = first
        elif not any(re.search(pattern, name) for pattern in ignored):
            unknown.append(name)
    missing = [first for first in groups if first not in result.values()]
    if missing or unknown:
        raise _mismatch_error(model, files, missing, unknown)
    check_fits(model, {first: name for name, first in result.items()}, files)
    return result


def _mismatch_error(
    model: nn.Module, files: TensorFiles, missing: list[str], unknown: list[str]
) -> ModelMismatchError:
    parts = [f"has no {format_names(missing)}"] if missing else []
    parts += [f"has {format_names(unknown)}, which the model does not have"] if unknown else []
    advice = ""
    if missing and unknown and hasattr(model, "save_pretrained"):
        advice = (
            ". If transformers can load the checkpoint, save it under the names of the model: "
            "model.save_pretrained(FOLDER, save_original_format=False)"
        )
    kind = type(model).__name__
    return ModelMismatchError(f"{files.folder} is not a {kind}: it {' and '.join(parts)}{advice}")
