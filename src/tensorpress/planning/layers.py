"""Finding layers: which weights can be pressed, by what pattern, and what a pressed model holds."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from tensorpress.errors import InvalidArgumentError, ModelMismatchError, unknown_name
from tensorpress.planning.plan import Core, LayerPlan, Plan
from tensorpress.schemes.dimensions import Shape
from tensorpress.schemes.tucker_weight import stored_factors, tucker_weight


def pressable(model: nn.Module) -> tuple[dict[str, Shape], dict[str, str]]:
    """Return the weights that can be pressed, and the layers that cannot with the reason."""
    shapes: dict[str, Shape] = {}
    kept: dict[str, str] = {}
    holders = _holders(model)
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            kept[name] = "its weight is parametrized already"
            continue
        weight = module._parameters.get("weight")
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise InvalidArgumentError(
                f"layer {name!r} has no shape yet: run the model once before planning"
            )
        if weight is None or weight.ndim < 2:
            continue
        others = [holder for holder in holders[id(weight)] if holder != f"{name}.weight"]
        if others:
            kept[name] = f"its weight is tied to {', '.join(map(repr, others))}"
        elif not weight.is_floating_point():
            kept[name] = f"its weight is {weight.dtype}, not floating point"
        elif weight.numel() == 0:
            kept[name] = "its weight is empty"
        else:
            shapes[name] = tuple(weight.shape)
    return shapes, kept


def _holders(model: nn.Module) -> dict[int, list[str]]:
    """Return every place a parameter is held; a module that is used twice counts once."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            holders.setdefault(id(parameter), []).append(f"{name}.{key}")
    return holders


def matching(pattern: str, names: Mapping[str, Any], kept: Mapping[str, str]) -> list[str]:
    """Return the names a name or ``*`` pattern stands for; none is an error that says why."""
    found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
    if not found and pattern in kept:
        raise InvalidArgumentError(f"layer {pattern!r} cannot be pressed: {kept[pattern]}")
    if not found:
        raise unknown_name("layer or pattern", pattern, names)
    return found


def plan_of(model: nn.Module) -> Plan:
    """Read the plan back from a pressed model.

    Examples
    --------
    >>> from torch import nn
    >>> plan_of(nn.Linear(3, 2)).layers
    ()
    """
    layers: list[LayerPlan] = []
    cores: set[int] = set()
    for name, module in model.named_modules():
        tucker = tucker_weight(module)
        if tucker is None:
            continue
        if tucker.shared:
            cores.add(id(stored_factors(module).original0))
        kind: Core = "diagonal" if tucker.diagonal else "shared" if tucker.shared else "own"
        layers.append(LayerPlan(name, tucker.shape, tucker.modes, tucker.ranks, kind))
    if len(cores) > 1:
        raise ModelMismatchError(f"layers that should share one core hold {len(cores)} of them")
    stored = sum(layer.factor_params for layer in layers)
    shared = next((prod(layer.ranks) for layer in layers if layer.core == "shared"), 0)
    total = sum(p.numel() for p in model.parameters())
    return Plan(
        "scada_tucker" if shared else "ada_tucker", tuple(layers), {}, total - stored - shared
    )
