"""The layers of a model that can be pressed, and their selection by names and patterns."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.measure.layer_calls import layer_calls
from tensorpress.planning.plan_table import VECTOR
from tensorpress.schemes.canonical_kernel import weight_to_kernel
from tensorpress.schemes.layer_spec import (
    Call,
    LayerSpec,
    describe_weight,
    refuse_layer,
    refuse_weight,
)
from tensorpress.schemes.pressed_layer import Pressed, pressed_forms
from tensorpress.schemes.reshape_modes import Shape
from tensorpress.schemes.scheme import Scheme
from tensorpress.utils.module_tree import weight_name

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
        If it matches nothing (the message has the reason or similar names), or is not a valid
        regular expression.

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
            raise InvalidArgumentError(
                f"{pattern!r} is not a valid regular expression: {error}"
            ) from None
        matches = [name for name in names if expression.fullmatch(name)]
    else:
        matches = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
    if not matches and pattern in unpressed:
        raise InvalidArgumentError(f"layer {pattern!r} cannot be pressed: {unpressed[pattern]}")
    if not matches:
        raise unknown_name("layer or pattern", pattern, names)
    return matches


Weights = Callable[[str], Tensor]
"""Returns the weight of a layer by name, in torch's shape."""

PRESSED = "it is pressed already: make it dense by tensorpress.unpress first"


@dataclass(frozen=True)
class Layer:
    """A layer that may be pressed: the weight or another parameter of a module.

    Attributes
    ----------
    name : str
        Its name in the model, the first one if a module is used twice; see `locate_weight`.
    module : nn.Module
        The layer; its values may be on the meta device.
    shape : tuple of int
        Shape of its dense weight.
    obstacles : mapping of str to str
        Forms of schemes that its place in the model forbids, with the reason.
    inputs : tuple of torch.Size
        Shapes of its inputs in one forward pass; empty if the model did not run.
    weights : callable, optional
        Returns its weight by name, if the module has no values.
    batch : int
        Number of examples of that forward pass.
    key : str
        Name of the weight in the module.
    """

    name: str
    module: nn.Module
    shape: Shape
    obstacles: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[torch.Size, ...] = ()
    weights: Weights | None = None
    batch: int = 1
    key: str = "weight"

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """Its calls in the forward pass of one example, if `describe_layer` accepts it."""
        if not self.inputs or self.key != "weight" or refuse_layer(self.module) is not None:
            return ()
        return layer_calls(self.spec(), self.inputs, self.batch)

    @property
    def weight(self) -> nn.Parameter:
        """Its weight in the module, possibly without values."""
        return self.module.get_parameter(self.key)

    @property
    def itemsize(self) -> int:
        """Bytes of a parameter."""
        return self.weight.element_size()

    def spec(self, scheme: Scheme | None = None) -> LayerSpec:
        """Return the description of the layer for a scheme, or else by `describe_weight`."""
        if scheme is None:
            return describe_weight(self.module, self.key)
        return scheme.describe(self.module, self.key)

    def obstacle(self, scheme: Scheme) -> str | None:
        """Return why the layer's place in the model forbids a scheme, or None."""
        return None if scheme.of_weight else self.obstacles.get(scheme.form)

    def kernel(self, scheme: Scheme | None = None) -> Tensor:
        """Return the layer's canonical kernel, (groups, out, in, *spatial), in working precision.

        Raises
        ------
        InvalidArgumentError
            If the weight is on the meta device, has another shape, or values that are not finite.
        """
        spec = self.spec(scheme)
        weight = self.weights(self.name) if self.weights else self.weight
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
    """Return the shapes of the weights that can be pressed, and the other weights with the reason.

    A weight is any parameter that is not a vector; see `locate_weight` for the names.

    Raises
    ------
    InvalidArgumentError
        If a layer has no shape yet.
    """
    shapes: dict[str, Shape] = {}
    unpressed: dict[str, str] = {}
    names = _name_parameters(model)
    for name, module in plain_modules(model):
        for key in getattr(module, "parametrizations", ()):
            pressed = key in pressed_forms(module)
            unpressed[weight_name(name, key)] = PRESSED if pressed else "its weight is parametrized"
        if isinstance(module, Pressed):
            unpressed[name] = PRESSED
            continue
        for key, weight in module._parameters.items():
            layer = weight_name(name, key)
            if isinstance(weight, nn.parameter.UninitializedParameter):
                raise InvalidArgumentError(
                    f"layer {layer!r} has no shape yet: run the model once before planning"
                )
            if weight is None or is_vector(key, weight):
                continue
            others = [other for other in names[id(weight)] if other != _full_name(name, key)]
            reason = refuse_weight(module, key)
            if others:
                unpressed[layer] = f"its weight is tied to {', '.join(map(repr, others))}"
            elif reason is not None:
                unpressed[layer] = reason
            else:
                shapes[layer] = tuple(weight.shape)
    return shapes, unpressed


def find_vectors(model: nn.Module) -> dict[str, str]:
    """Return the floating-point parameters that no scheme can press, with the reason."""
    return {
        _full_name(name, key): VECTOR
        for name, module in plain_modules(model)
        if not isinstance(module, Pressed)
        for key, parameter in module._parameters.items()
        if parameter is not None and parameter.is_floating_point() and is_vector(key, parameter)
    }


def is_vector(key: str, parameter: Tensor) -> bool:
    """Return whether a parameter has fewer than two axes; all but weights are squeezed first."""
    return (parameter if key == "weight" else parameter.squeeze()).ndim < 2


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a model by name, except those within pressed and parametrized layers."""
    parts = pressed_parts(model)
    for name, module in model.named_modules():
        if id(module) not in parts:
            yield name, module


def find_obstacles(model: nn.Module, read: Collection[str]) -> Mapping[str, Mapping[str, str]]:
    """Return the layers that cannot be pressed because of their place in a model, by form.

    Each has the reason. If other modules read a weight, it can be rebuilt from factors (form
    "weight"), but its layer cannot be replaced (form "layer").

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
    replaced = dict.fromkeys(read, "another module reads its weight")
    for name, module in model.named_modules():
        biases = names.get(id(module._parameters.get("bias")), [])
        others = [repr(other) for other in biases if other != _full_name(name, "bias")]
        if others:
            tied[name] = f"its bias is tied to {', '.join(others)}"
        if id(module) in children:
            replaced[name] = "nn.TransformerEncoderLayer reads its weight directly"
    return {"weight": tied, "layer": tied | replaced}


def _name_parameters(model: nn.Module) -> dict[int, list[str]]:
    """Return all names of every parameter, by its id; a module used twice has one name."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), []).append(_full_name(name, key))
    return names


def _full_name(module: str, key: str) -> str:
    return f"{module}.{key}" if module else key


def pressed_parts(model: nn.Module) -> dict[int, str]:
    """Map the ids of modules within pressed or parametrized layers to the layers' names."""
    layers = {
        name: module if isinstance(module, Pressed) else module._modules.get("parametrizations")
        for name, module in model.named_modules()
    }
    return {
        id(part): name
        for name, layer in layers.items()
        if layer is not None
        for part in layer.modules()
        if not isinstance(part, Pressed) or part is not layer
    }
