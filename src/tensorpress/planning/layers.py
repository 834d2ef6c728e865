"""The layers of a model that can be pressed, and how names and patterns select them."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.measure.layer_calls import layer_calls
from tensorpress.schemes.canonical_kernel import weight_to_kernel
from tensorpress.schemes.layer_spec import Call, LayerSpec, describe_layer, refuse_layer
from tensorpress.schemes.parametrization import factorized_weight
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.schemes.reshape_modes import Shape
from tensorpress.schemes.scheme import Scheme

REGEX = "re:"


def match_names(pattern: str, names: Iterable[str], kept: Mapping[str, str]) -> list[str]:
    """Return the names a pattern stands for.

    Parameters
    ----------
    pattern : str
        A name; a pattern with ``*``, which also stands for dots; or ``re:`` and a regular
        expression that matches the whole name.
    names : iterable of str
        To choose from.
    kept : mapping of str to str
        Layers that cannot be chosen, with the reason.

    Raises
    ------
    InvalidArgumentError
        If it matches nothing, with the reason or the nearest names; or is no regular expression.

    Examples
    --------
    >>> names = ["conv1", "layer1.conv1", "layer1.conv2"]
    >>> match_names("layer1.*", names, {}), match_names("re:.*conv1", names, {})
    (['layer1.conv1', 'layer1.conv2'], ['conv1', 'layer1.conv1'])
    """
    names = list(names)
    if pattern.startswith(REGEX):
        found = _matching_regex(pattern, names)
    else:
        found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
    if not found and pattern in kept:
        raise InvalidArgumentError(f"layer {pattern!r} cannot be pressed: {kept[pattern]}")
    if not found:
        raise unknown_name("layer or pattern", pattern, names)
    return found


def _matching_regex(pattern: str, names: Iterable[str]) -> list[str]:
    try:
        expression = re.compile(pattern.removeprefix(REGEX))
    except re.error as error:
        raise InvalidArgumentError(f"{pattern!r} is no regular expression: {error}") from None
    return [name for name in names if expression.fullmatch(name)]


Weights = Callable[[str], Tensor]
"""The weight of a layer by its name, as torch holds it."""

PRESSED = "it is pressed already: tensorpress.unpress gives the dense layer to press anew"


@dataclass(frozen=True)
class Layer:
    """A layer that may be pressed.

    Attributes
    ----------
    name : str
        In the model; of a module that is used twice the first.
    module : nn.Module
        Its values may be on the meta device.
    shape : tuple of int
        Of its dense weight.
    blocked : mapping of str to str
        Forms of schemes that its place in the model forbids, with the reason.
    inputs : tuple of torch.Size
        Shapes of its inputs in one forward pass, where inputs were given.
    weights : callable, optional
        Where its weight comes from, if not from the module.
    calls : tuple of Call
        The same for one example, of a layer that can be described.
    """

    name: str
    module: nn.Module
    shape: Shape
    blocked: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[torch.Size, ...] = ()
    weights: Weights | None = None
    calls: tuple[Call, ...] = ()

    def with_calls(self, batch: int) -> "Layer":
        """Return the layer with the calls that its inputs are, for so many examples."""
        if refuse_layer(self.module) is not None:
            return self
        return replace(self, calls=layer_calls(self.spec(), self.inputs, batch))

    @property
    def itemsize(self) -> int:
        """Bytes of a parameter."""
        return next(self.module.parameters()).element_size()

    def spec(self, scheme: Scheme | None = None) -> LayerSpec:
        """Return what the layer is to a scheme, or else by `describe_layer`."""
        return describe_layer(self.module) if scheme is None else scheme.describe(self.module)

    def obstacle(self, scheme: Scheme) -> str | None:
        """Return why its place in the model forbids a scheme, None where it does not."""
        return None if scheme.of_weight else self.blocked.get(scheme.form)

    def kernel(self, scheme: Scheme | None = None) -> Tensor:
        """Return its canonical kernel in working precision, as it is to a scheme.

        Raises
        ------
        InvalidArgumentError
            For values that are not there, NaN or infinite.
        """
        spec = self.spec(scheme)
        weight = self.weights(self.name) if self.weights else self.module.get_parameter("weight")
        if weight.is_meta:
            raise InvalidArgumentError("its weight is on the meta device: it has no values")
        if tuple(weight.shape) != self.shape:
            raise InvalidArgumentError(
                f"its weight has shape {tuple(weight.shape)}, expected {self.shape}"
            )
        if not bool(torch.isfinite(weight).all()):
            raise InvalidArgumentError("its weight has NaN or infinite values")
        return to_working_precision(weight_to_kernel(weight.detach(), spec))


def find_pressable(model: nn.Module) -> tuple[dict[str, Shape], dict[str, str]]:
    """Return the shapes of the weights that can be pressed, and what cannot with the reason.

    Raises
    ------
    InvalidArgumentError
        For a layer that has no shape yet.
    """
    shapes: dict[str, Shape] = {}
    kept: dict[str, str] = {}
    holders = _holders(model)
    inside = {id(part) for part in _pressed_parts(model)}
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, Pressed) or factorized_weight(module) is not None:
            kept[name] = PRESSED
            continue
        if parametrize.is_parametrized(module, "weight"):
            kept[name] = "its weight is parametrized"
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


def find_obstacles(model: nn.Module, read: Collection[str]) -> Mapping[str, Mapping[str, str]]:
    """Return the layers whose place in a model forbids to press them, with the reason, by form.

    The forms are those of `tensorpress.schemes.scheme.Scheme`: a layer whose weight others read can
    have it rebuilt, but not be replaced.

    Parameters
    ----------
    model : nn.Module
        The model.
    read : collection of str
        Layers that others were seen to compute with the weight of; see
        `tensorpress.planning.dense_model.record_readers`.
    """
    tied = _tied_biases(model)
    seen = dict.fromkeys(read, "a module around it computes with its weight")
    return {"weight": tied, "layer": seen | tied | _read_by_parents(model)}


def _tied_biases(model: nn.Module) -> dict[str, str]:
    reasons: dict[str, str] = {}
    holders = _holders(model)
    for name, module in model.named_modules():
        held = holders.get(id(module._parameters.get("bias")), [])
        others = [repr(holder) for holder in held if holder != f"{name}.bias"]
        if others:
            reasons[name] = f"its bias is tied to {', '.join(others)}"
    return reasons


def _read_by_parents(model: nn.Module) -> dict[str, str]:
    read = {
        id(child)
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        for child in (module.linear1, module.linear2)
    }
    reason = "nn.TransformerEncoderLayer reads its weight directly"
    return {name: reason for name, module in model.named_modules() if id(module) in read}


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
