"""Finding layers: which weights of a model can be pressed, and what is known about each."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tensorpress.decompose.precision import working
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.calls import Call, calls_of
from tensorpress.schemes.dimensions import Shape
from tensorpress.schemes.factorized_weight import factorized_weight
from tensorpress.schemes.layer import LayerSpec, describe, kernel_from, unpressable
from tensorpress.schemes.pressed import Pressed

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

    def called(self, batch: int) -> "Layer":
        """Return the layer with the calls that its inputs are, for so many examples."""
        if unpressable(self.module) is not None:
            return self
        return replace(self, calls=calls_of(self.spec(), self.inputs, batch))

    @property
    def itemsize(self) -> int:
        """Bytes of a parameter."""
        return next(self.module.parameters()).element_size()

    def spec(self) -> LayerSpec:
        """Return what the layer is; see `tensorpress.schemes.layer.describe`."""
        return describe(self.module)

    def kernel(self) -> Tensor:
        """Return its canonical kernel in working precision.

        Raises
        ------
        InvalidArgumentError
            For values that are not there, NaN or infinite.
        """
        spec = self.spec()
        weight = self.weights(self.name) if self.weights else self.module.get_parameter("weight")
        if weight.is_meta:
            raise InvalidArgumentError("its weight is on the meta device: it has no values")
        if tuple(weight.shape) != self.shape:
            raise InvalidArgumentError(
                f"its weight has shape {tuple(weight.shape)}, expected {self.shape}"
            )
        if not bool(torch.isfinite(weight).all()):
            raise InvalidArgumentError("its weight has NaN or infinite values")
        return working(kernel_from(weight.detach(), spec))


def pressable(model: nn.Module) -> tuple[dict[str, Shape], dict[str, str]]:
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


def obstacles(model: nn.Module, read: Collection[str]) -> Mapping[str, Mapping[str, str]]:
    """Return the layers whose place in a model forbids to press them, with the reason, by form.

    The forms are those of `tensorpress.schemes.base.Scheme`: a layer whose weight others read can
    have it rebuilt, but not be replaced.

    Parameters
    ----------
    model : nn.Module
        The model.
    read : collection of str
        Layers that others were seen to compute with the weight of; see
        `tensorpress.planning.readers.noting_readers`.
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
