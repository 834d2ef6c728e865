"""The header of a `.tpz` file: network, plan and tensors, checked before allocation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tensorpress.codec.model_tensors import distinct_state
from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.models.zoo import NETWORKS
from tensorpress.planning.layers import find_pressable
from tensorpress.planning.plan import Plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.press.press import build_skeleton
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import LayerSpec, weight_spec
from tensorpress.schemes.options import NO_OPTIONS, Options
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.reshape_modes import Shape
from tensorpress.utils.formatting import format_shape
from tensorpress.utils.module_tree import locate_weight

MAX_MODES = 16
"""Largest number of modes of a layer, and of axes of a tensor, in a valid header."""


class MalformedError(Exception):
    """The bytes do not have the form of a header."""


def require(condition: bool) -> None:
    """Raise a `MalformedError` unless a condition holds."""
    if not condition:
        raise MalformedError


class PackedLayer(NamedTuple):
    """The scheme of a layer with its ranks and options."""

    name: str
    shape: Shape
    scheme: str
    ranks: Shape
    options: Options = NO_OPTIONS

    def plan(self, spec: LayerSpec) -> LayerPlan:
        """Return the plan of the layer, or raise an `InvalidArgumentError` if it is invalid."""
        options = scheme(self.scheme, self.options).options
        plan = LayerPlan(self.name, self.scheme, spec, self.ranks, options)
        plan.check()
        return plan


class TensorEntry(NamedTuple):
    """Name, shape and dtype (``"float32"``) of a stored tensor."""

    name: str
    shape: Shape
    dtype: str


Table = tuple[TensorEntry, ...]


@dataclass(frozen=True)
class Description:
    """The description of a model in its file.

    Attributes
    ----------
    network : str or None
        The name of the network in the zoo.
    layers : tuple of PackedLayer
        The pressed layers.
    tensors : tuple of TensorEntry
        The stored tensors, in order.
    """

    network: str | None
    layers: tuple[PackedLayer, ...]
    tensors: Table

    def plan_for(self, file: str, dense: nn.Module) -> Plan:
        """Return the plan for pressing a dense model.

        Raises
        ------
        ModelMismatchError
            If a layer is missing, has another shape or cannot be pressed as the file describes.
        """
        return plan_from_header(file, dense, self.layers)

    def check_tensors(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        """Check that the tensors of a pressed model match the file.

        Raises
        ------
        ModelMismatchError
            If they differ; the message names the first difference.
        """
        for expected, actual in zip_longest(self.tensors, tensor_table(tensors)):
            if expected != actual:
                raise ModelMismatchError(
                    f"{file} has {_format_entry(expected)} where the model has "
                    f"{_format_entry(actual)}"
                )


def plan_from_header(file: str, dense: nn.Module, layers: tuple[PackedLayer, ...]) -> Plan:
    """Return the plan that presses these layers of a dense model; see `Description.plan_for`."""
    shapes, dense_reasons = find_pressable(dense)
    planned = []
    for packed in layers:
        shape = shapes.get(packed.name)
        if shape != packed.shape:
            reason = "the model has no such layer"
            if shape is not None:
                reason = f"the model has a weight {format_shape(shape)}"
            if packed.name in dense_reasons:
                reason = f"in the model {dense_reasons[packed.name]}"
            raise ModelMismatchError(
                f"{file} has a layer {packed.name!r} with a weight "
                f"{format_shape(packed.shape)}, but {reason}"
            )
        try:
            spec = scheme(packed.scheme).describe(*locate_weight(dense, packed.name))
            planned.append(packed.plan(spec))
        except InvalidArgumentError as error:
            raise ModelMismatchError(f"{file}: layer {packed.name!r}: {error}") from None
    if not is_affordable(planned):
        raise ModelMismatchError(f"{file} has factors far larger than the weights of this model")
    return Plan("", tuple(planned))


def describe(model: nn.Module, network: str | None, tensors: Mapping[str, Tensor]) -> Description:
    """Return the description of a model to save.

    Raises
    ------
    ModelMismatchError
        If the model is not the named network of the zoo, or no plan describes how it is pressed.
    InvalidArgumentError
        If its factors are far larger than the dense weights.
    """
    plan = plan_from_model(model)
    if not is_affordable(plan.layers):
        raise InvalidArgumentError(
            "the model's factors are far larger than the dense weights: save it dense"
        )
    table = tensor_table(tensors)
    if network is not None:
        _check_network(network, plan, table)
    layers = (PackedLayer(x.name, x.shape, x.scheme, x.ranks, x.options) for x in plan.layers)
    return Description(network, tuple(layers), table)


def dense_network(name: str) -> nn.Module:
    """Return a network of the zoo on the meta device."""
    with torch.device("meta"):
        return NETWORKS[name].build()


def tensor_table(tensors: Mapping[str, Tensor]) -> Table:
    """Return the table of a model's stored tensors."""
    return tuple(
        TensorEntry(name, tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in tensors.items()
    )


def pressed_table(dense: nn.Module, plan: Plan) -> Table:
    """Return the table of a dense model after pressing; it may be on the meta device."""
    return tensor_table(distinct_state(build_skeleton(dense, plan)))


def _check_network(network: str, plan: Plan, table: Table) -> None:
    """Check that a plan and a table belong to a network of the zoo."""
    dense = dense_network(network)
    shapes, _ = find_pressable(dense)
    for layer in plan.layers:
        if shapes.get(layer.name) != layer.shape:
            raise ModelMismatchError(
                f"this model is not {network!r}: that network has no layer {layer.name!r} "
                f"with a weight {format_shape(layer.shape)}"
            )
    try:
        expected = pressed_table(dense, plan)
    except ModelMismatchError as error:
        raise ModelMismatchError(f"this model is not {network!r}: {error}") from None
    for entry, actual in zip_longest(expected, table):
        if entry != actual:
            raise ModelMismatchError(
                f"this model is not {network!r}: expected {_format_entry(entry)}, got "
                f"{_format_entry(actual)}"
            )


def _format_entry(entry: TensorEntry | None) -> str:
    if entry is None:
        return "no more tensors"
    return f"{entry.name!r} ({format_shape(entry.shape) or 'scalar'}, {entry.dtype})"


def check_layers(layers: Sequence[PackedLayer]) -> None:
    """Check that layers can be in one model and need a plausible amount of memory.

    Memory is checked for schemes whose cost depends only on the weight.
    """
    require(len({layer.name for layer in layers}) == len(layers))
    methods = {layer.scheme: scheme(layer.scheme) for layer in layers}
    shared = [layer for layer in layers if methods[layer.scheme].shared]
    require(len({(x.scheme, x.ranks) for x in shared}) == len({x.scheme for x in shared}))
    checked = [layer for layer in layers if methods[layer.scheme].of_weight]
    try:
        require(is_affordable([layer.plan(weight_spec(layer.shape)) for layer in checked]))
    except InvalidArgumentError:
        raise MalformedError from None


_EXTRA_VALUES = 1 << 23  # a shared core may be larger than the small layers that use it


def is_affordable(layers: Iterable[LayerPlan]) -> bool:
    """Return whether factors and rebuilding take little more memory than the weights.

    Examples
    --------
    >>> weight, options = weight_spec((25, 20)), {"modes": (25, 20)}
    >>> is_affordable([LayerPlan("a", "scada_tucker", weight, (5, 5), options)])
    True
    >>> is_affordable([LayerPlan("a", "scada_tucker", weight, (9999, 9999), options)])
    False
    """
    beyond = (x.method.peak_values(x.spec, x.ranks) - 2 * x.dense_params for x in layers)
    return sum(max(values, 0) for values in beyond) <= _EXTRA_VALUES
