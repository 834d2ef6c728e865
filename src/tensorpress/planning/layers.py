"""Finding layers: which weights can be pressed, and what a name or a pattern stands for."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.schemes.dimensions import Shape
from tensorpress.schemes.pressed import Pressed


def pressable(model: nn.Module) -> tuple[dict[str, Shape], dict[str, str]]:
    """Return the weights that can be pressed, and the layers that cannot with the reason."""
    shapes: dict[str, Shape] = {}
    kept: dict[str, str] = {}
    holders = _holders(model)
    inside = {id(part) for part in _pressed_parts(model)}
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, Pressed):
            kept[name] = "it is pressed already"
            continue
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


def tied_biases(model: nn.Module) -> dict[str, str]:
    """Return the layers whose bias is held elsewhere as well, with the reason to keep them."""
    reasons: dict[str, str] = {}
    holders = _holders(model)
    for name, module in model.named_modules():
        held = holders.get(id(module._parameters.get("bias")), [])
        others = [repr(holder) for holder in held if holder != f"{name}.bias"]
        if others:
            reasons[name] = f"its bias is tied to {', '.join(others)}"
    return reasons


def read_by_parents(model: nn.Module) -> dict[str, str]:
    """Return the layers whose weight the module around them reads, with the reason to keep them."""
    read = {
        id(child)
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        for child in (module.linear1, module.linear2)
    }
    reason = "nn.TransformerEncoderLayer reads its weight directly"
    return {name: reason for name, module in model.named_modules() if id(module) in read}


def matching(pattern: str, names: Mapping[str, Any], kept: Mapping[str, str]) -> list[str]:
    """Return the names a name or ``*`` pattern stands for; none is an error that says why."""
    found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
    if not found and pattern in kept:
        raise InvalidArgumentError(f"layer {pattern!r} cannot be pressed: {kept[pattern]}")
    if not found:
        raise unknown_name("layer or pattern", pattern, names)
    return found


def _holders(model: nn.Module) -> dict[int, list[str]]:
    """Return every place a parameter is held; a module that is used twice counts once."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(f"{name}.{key}")
    return holders


def _pressed_parts(model: nn.Module) -> list[nn.Module]:
    """Return the modules that pressed layers are made of."""
    return [
        part
        for module in model.modules()
        if isinstance(module, Pressed)
        for part in module.modules()
        if part is not module
    ]
