"""What becomes of every tensor of a checkpoint when it is pressed."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorpress.checkpoints.states import tied_names
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.layer_plans import PlannedLayer, SchemePlan
from tensorpress.planning.plan import Plan
from tensorpress.pressing import skeleton
from tensorpress.schemes.base import bias_of
from tensorpress.schemes.registry import scheme


@dataclass(frozen=True)
class Route:
    """One tensor of a model: copied, or the weight of a layer that is pressed.

    Attributes
    ----------
    outputs : mapping of str to Tensor
        What it becomes, by name in the pressed model's state; on the meta device.
    layer : LayerPlan or SchemePlan or None
        The layer whose weight it is, where that is pressed.
    """

    outputs: Mapping[str, Tensor]
    layer: PlannedLayer | None = None


def routes(dense: nn.Module, plan: Plan) -> dict[str, Route]:
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
            "scada_tucker shares one core among layers, so it needs all of them in memory: press "
            "the loaded model"
        )
    pressed = skeleton(deepcopy(dense), plan)
    state = pressed.state_dict(keep_vars=True)
    left = {name: state[name] for name in tied_names(pressed)}
    found = {}
    for layer in plan.layers:
        prefix = f"{layer.name}." if layer.name else ""
        own = {name: left.pop(name) for name in list(left) if name.startswith(prefix)}
        bias = bias_of(pressed.get_submodule(layer.name))
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
        pressed = _pressed(layer, module).state_dict()
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None
    prefix = f"{layer.name}." if layer.name else ""
    return {name: pressed[name.removeprefix(prefix)] for name in route.outputs}


def _pressed(layer: PlannedLayer, module: nn.Module) -> nn.Module:
    if isinstance(layer, SchemePlan):
        return scheme(layer.scheme).press(module, layer.ranks)
    layer.parametrization().attach(module)
    return module
