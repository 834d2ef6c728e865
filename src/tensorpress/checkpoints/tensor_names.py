"""The names of tensors: from a checkpoint to a model, and from a model to a pressed checkpoint."""

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
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.pressed_layer import layer_bias
from tensorpress.utils.formatting import format_names


@dataclass(frozen=True)
class Route:
    """One tensor of a model: copied, or the weight of a layer that is pressed.

    Attributes
    ----------
    outputs : mapping of str to Tensor
        What it becomes, by name in the pressed model's state; on the meta device.
    layer : LayerPlan or None
        The layer whose weight it is, where that is pressed.
    """

    outputs: Mapping[str, Tensor]
    layer: LayerPlan | None = None


def route_tensors(dense: nn.Module, plan: Plan) -> dict[str, Route]:
    """Return what each tensor of a dense model's state becomes.

    Parameters
    ----------
    dense : nn.Module
        On the meta device, its tensors of the types they are stored in; untouched.
    plan : Plan
        How it is pressed.

    Raises
    ------
    ModelMismatchError
        Where the plan is not one for this model.
    InvalidArgumentError
        If layers share a core, which needs all of them at once.
    """
    if plan.shared_core is not None:
        raise InvalidArgumentError(
            f"{plan.scheme} shares one core among layers, so it needs all of them in memory: press "
            "the loaded model"
        )
    pressed = build_skeleton(deepcopy(dense), plan)
    state = pressed.state_dict(keep_vars=True)
    left = {name: state[name] for name in tied_names(pressed)}
    found = {}
    for layer in plan.layers:
        prefix = f"{layer.name}." if layer.name else ""
        own = {name: left.pop(name) for name in list(left) if name.startswith(prefix)}
        bias = layer_bias(pressed.get_submodule(layer.name))
        if bias is not None:
            name = next(name for name, tensor in own.items() if tensor is bias)
            found[f"{prefix}bias"] = Route({name: own.pop(name)})
        found[f"{prefix}weight"] = Route(own, layer)
    return found | {name: Route({name: tensor}) for name, tensor in left.items()}


def press_weight(dense: nn.Module, route: Route, weight: Tensor) -> dict[str, Tensor]:
    """Return what the weight of one layer becomes, by name in the pressed model's state.

    Parameters
    ----------
    dense : nn.Module
        The dense model on the meta device.
    route : Route
        With a layer.
    weight : Tensor
        Its values.

    Raises
    ------
    InvalidArgumentError
        For NaN or infinite values, naming the layer.
    """
    layer = route.layer
    assert layer is not None
    module = deepcopy(dense.get_submodule(layer.name))
    module.weight = nn.Parameter(weight, requires_grad=False)
    bias = module._parameters.get("bias")
    if bias is not None:  # Its values go elsewhere, and no scheme looks at them.
        module.bias = nn.Parameter(torch.zeros_like(bias, device="cpu"), requires_grad=False)
    try:
        pressed = layer.method.press(module, layer.ranks).state_dict()
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None
    prefix = f"{layer.name}." if layer.name else ""
    return {name: pressed[name.removeprefix(prefix)] for name in route.outputs}


def match_tensor_names(model: nn.Module, files: TensorFiles) -> dict[str, str]:
    """Return the name in a model's state of every tensor of a checkpoint that the model uses.

    Of tied tensors it is the first name. A prefix of the base model (``transformer.``) may be
    missing, or be there although the model has none; tensors that the model's class says to ignore
    are left out.

    Raises
    ------
    ModelMismatchError
        If a tensor is missing, has no place in the model, or has another shape.
    """
    groups = tied_names(model)
    first_of = {name: first for first, names in groups.items() for name in names}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found, unknown = {}, []
    for name in files.tensors:
        own = next((n for n in _spellings(name, prefix) if n in first_of), None)
        if own is not None:
            found[name] = first_of[own]
        elif not _ignored(model, name):
            unknown.append(name)
    missing = [first for first in groups if first not in found.values()]
    if missing or unknown:
        raise _mismatch(model, files, missing, unknown)
    check_fits(model, {first: name for name, first in found.items()}, files)
    return found


def _spellings(name: str, prefix: str) -> list[str]:
    return [name, prefix + name, name.removeprefix(prefix)]


def _ignored(model: nn.Module, name: str) -> bool:
    """Whether a class of transformers says that old files hold a tensor it has no use for."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _mismatch(
    model: nn.Module, files: TensorFiles, missing: list[str], unknown: list[str]
) -> ModelMismatchError:
    parts = [f"has no {format_names(missing)}"] if missing else []
    parts += [f"has {format_names(unknown)}, which the model has not"] if unknown else []
    advice = ""
    if missing and unknown and hasattr(model, "save_pretrained"):
        advice = (
            ". Where transformers itself can load the checkpoint, save it once under the model's "
            "own names: model.save_pretrained(FOLDER, save_original_format=False)"
        )
    kind = type(model).__name__
    return ModelMismatchError(f"{files.folder} is no {kind}: it {' and '.join(parts)}{advice}")
