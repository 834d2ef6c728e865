"""The layers of a model that can be pressed, and their selection by names and patterns."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

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


def match_names(pattern: str, names: Iterable[str], unpressed: Mapping[str, str]) -> list[str]:
    """Return the names that a pattern matches.

    Parameters
    ----------
    pattern : str
        A name; a pattern with ``*``, which also stands for dots; or ``re:`` and a regular
        expression that matches the whole name.
    names : iterable of str
        The names of the layers.
    unpressed : mapping of str to str
        Layers that cannot be pressed, with the reason.

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
        try:
            expression = re.compile(pattern.removeprefix(REGEX))
        except re.error as error:
            raise InvalidArgumentError(f"{pattern!r} is no regular expression: {error}") from None
        matches = [name for name in names if expression.fullmatch(name)]
    else:
        matches = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
    if not matches and pattern in unpressed:
        raise InvalidArgumentError(f"layer {pattern!r} cannot be pressed: {unpressed[pattern]}")
    if not matches:
        raise unknown_name("layer or pattern", pattern, names)
    return matches


Weights = Callable[[str], Tensor]
"""Function that returns the weight of a layer by its name, in torch's shape."""

PRESSED = "it is pressed already: tensorpress.unpress gives the dense layer to press anew"


@dataclass(frozen=True)
class Layer:
    """A layer that may be pressed.

    Attributes
    ----------
    name : str
        Its name in the model, the first of a module that is used twice.
    module : nn.Module
        The layer; its values may be on the meta device.
    shape : tuple of int
        Shape of its dense weight.
    obstacles : mapping of str to str
        Forms of schemes that its place in the model forbids, with the reason.
    inputs : tuple of torch.Size
        Shapes of its inputs in one forward pass, if the model ran.
    weights : callable, optional
        Function that returns its weight, if the module has no values.
    batch : int
        Number of examples of that forward pass.
    """

    name: str
    module: nn.Module
    shape: Shape
    obstacles: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[torch.Size, ...] = ()
    weights: Weights | None = None
    batch: int = 1

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """Its calls in the forward pass of one example, if `describe_layer` takes it."""
        if not self.inputs or refuse_layer(self.module) is not None:
            return ()
        return layer_calls(self.spec(), self.inputs, self.batch)

    @property
    def itemsize(self) -> int:
        """Bytes of a parameter."""
        return next(self.module.parameters()).element_size()

    def spec(self, scheme: Scheme | None = None) -> LayerSpec:
        """Return the description of the layer for a scheme, or else by `describe_layer`."""
        return describe_layer(self.module) if scheme is None else scheme.describe(self.module)

    def obstacle(self, scheme: Scheme) -> str | None:
        """Return why the layer's place in the model forbids a scheme, or None."""
        return None if scheme.of_weight else self.obstacles.get(scheme.form)

    def kernel(self, scheme: Scheme | None = None) -> Tensor:
        """Return the layer's canonical kernel, (groups, out, in, *spatial), in working precision.

        Raises
        ------
        InvalidArgumentError
            For a weight on the meta device, of another shape, or with NaN or infinite values.
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
    """Return the shapes of the weights that can be pressed, and the other layers with the reason.

    Raises
    ------
    InvalidArgumentError
        For a layer that has no shape yet.
    """
    shapes: dict[str, Shape] = {}
    unpressed: dict[str, str] = {}
    names = _name_parameters(model)
    parts = pressed_parts(model)
    for name, module in model.named_modules():
        if id(module) in parts:
            continue
        if isinstance(module, Pressed) or factorized_weight(module) is not None:
            unpressed[name] = PRESSED
            continue
        if parametrize.is_parametrized(module, "weight"):
            unpressed[name] = "its weight is parametrized"
            continue
        weight = module._parameters.get("weight")
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise InvalidArgumentError(
                f"layer {name!r} has no shape yet: run the model once before planning"
            )
        if weight is None or weight.ndim < 2:
            continue
        others = [other for other in names[id(weight)] if other != f"{name}.weight"]
        if others:
            unpressed[name] = f"its weight is tied to {', '.join(map(repr, others))}"
        elif not weight.is_floating_point():
            unpressed[name] = f"its weight is {weight.dtype}, not floating point"
        elif weight.numel() == 0:
            unpressed[name] = "its weight is empty"
        else:
            shapes[name] = tuple(weight.shape)
    return shapes, unpressed


def find_obstacles(model: nn.Module, read: Collection[str]) -> Mapping[str, Mapping[str, str]]:
    """Return the layers that their place in a model forbids to press, with the reason, by form.

    The forms are those of `tensorpress.schemes.scheme.Scheme`. A weight that other modules read can
    be rebuilt from factors, but its layer cannot be replaced.

    Parameters
    ----------
    model : nn.Module
        The model.
    read : collection of str
        Layers whose weight other modules read, from
        `tensorpress.planning.dense_model.record_readers`.
    """
    names = _name_parameters(model)
    parents = [m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    children = {id(child) for parent in parents for child in (parent.linear1, parent.linear2)}
    tied: dict[str, str] = {}
    replaced = dict.fromkeys(read, "a module around it computes with its weight")
    for name, module in model.named_modules():
        biases = names.get(id(module._parameters.get("bias")), [])
        others = [repr(other) for other in biases if other != f"{name}.bias"]
        if others:
            tied[name] = f"its bias is tied to {', '.join(others)}"
        if id(module) in children:
            replaced[name] = "nn.TransformerEncoderLayer reads its weight directly"
    return {"weight": tied, "layer": tied | replaced}


def _name_parameters(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of every parameter by its id; a module that is used twice has one name."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), []).append(f"{name}.{key}")
    return names


def pressed_parts(model: nn.Module) -> dict[int, str]:
    """Return the names of pressed layers by the ids of the modules that they consist of."""
    return {
        id(part): name
        for name, module in model.named_modules()
        if isinstance(module, Pressed)
        for part in module.modules()
        if part is not module
    }
