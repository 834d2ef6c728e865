"""The header of a `.tpz` file: which network, which plan, which tensors, in few bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, get_args
from zlib import crc32

import msgpack
import torch
from torch import Tensor, nn

from tensorpress.errors import CorruptFileError, InvalidArgumentError, ModelMismatchError
from tensorpress.planning.layers import plan_of, pressable
from tensorpress.planning.plan import Core, LayerPlan, Plan
from tensorpress.schemes.dimensions import Shape, by
from tensorpress.schemes.tucker_weight import TuckerWeight
from tensorpress.zoo import NETWORKS

CORES: tuple[Core, ...] = get_args(Core)

PackedLayer = tuple[str | int, Shape | None, Shape, Shape, Core]
"""Name or number, shape or None, modes, ranks and core of a pressed layer."""


@dataclass(frozen=True)
class TensorEntry:
    """Name, shape and dtype (``"float32"``) of a stored tensor."""

    name: str
    shape: Shape
    dtype: str


Table = tuple[TensorEntry, ...]


@dataclass(frozen=True)
class Description:
    """What a file says of its model.

    For a network of the zoo, layers are packed by their number and tensors as a
    checksum of their names, shapes and dtypes; for any other model all of it is written out.

    Attributes
    ----------
    network : str or None
        Name in the zoo.
    layers : tuple of PackedLayer
        Every pressed layer.
    tensors : tuple of TensorEntry, or int
        The table of tensors, or its checksum.
    """

    network: str | None
    layers: tuple[PackedLayer, ...]
    tensors: Table | int

    def pack(self) -> list[Any]:
        """Return the header as msgpack takes it."""
        layers = []
        for ref, shape, modes, ranks, core in self.layers:
            compact = ranks[0] if len(set(ranks)) == 1 else ranks
            entry = [ref, modes, compact, *([CORES.index(core)] if core != "own" else [])]
            layers.append(entry if shape is None else [shape, *entry])
        tensors = self.tensors
        if not isinstance(tensors, int):
            return [self.network, layers, [[t.name, t.shape, t.dtype] for t in tensors]]
        return [self.network, layers, tensors]

    def plan_for(self, file: str, dense: nn.Module) -> Plan:
        """Return the plan to press a dense model with.

        Raises
        ------
        ModelMismatchError
            If a layer is missing or has another shape.
        CorruptFileError
            If the modes and ranks fit no weight.
        """
        shapes, kept = pressable(dense)
        names = list(shapes)
        layers = []
        for ref, shape, modes, ranks, core in self.layers:
            if isinstance(ref, int) and ref >= len(names):
                raise ModelMismatchError(
                    f"{file} was made from a network with more than {len(names)} layers"
                )
            name = names[ref] if isinstance(ref, int) else ref
            found = shapes.get(name)
            if found is None or shape not in (None, found):
                has = (
                    f"the model has a weight {by(found)}"
                    if found
                    else "the model has no such layer"
                )
                raise ModelMismatchError(
                    f"{file} expects a layer {name!r} with a weight {by(shape or ())}; "
                    + (f"in the model {kept[name]}" if name in kept else has)
                )
            try:
                TuckerWeight(found, modes, ranks, diagonal=core == "diagonal")
            except InvalidArgumentError as error:
                kind = CorruptFileError if shape else ModelMismatchError
                raise kind(f"{file}: layer {name!r}: {error}") from None
            layers.append(LayerPlan(name, found, modes, ranks, core))
        return Plan("", tuple(layers))

    def check_tensors(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        """Check that the tensors of a pressed model are those of the file.

        Raises
        ------
        ModelMismatchError
            If they are not; where the file has the table, naming the first that differs.
        """
        table = table_of(tensors)
        if isinstance(self.tensors, int):
            if self.tensors != checksum(table):
                raise ModelMismatchError(
                    f"{file} was made from a model whose tensors have other names, shapes or "
                    f"dtypes than this one's ({self.network or 'not in the zoo'})"
                )
            return
        for expected, found in zip_longest(self.tensors, table):
            if expected != found:
                raise ModelMismatchError(
                    f"{file} expects {_told(expected)} where the model has {_told(found)}"
                )


def describe(model: nn.Module, network: str | None, tensors: Mapping[str, Tensor]) -> Description:
    """Return the description of a model that is to be saved.

    Raises
    ------
    ModelMismatchError
        If the model is not the network of the zoo it is said to be.
    """
    plan = plan_of(model)
    table = table_of(tensors)
    if network is None:
        rows = [(p.name, p.shape, p.modes, p.ranks, p.core) for p in plan.layers]
        return Description(None, tuple(rows), table)
    with torch.device("meta"):
        dense = NETWORKS[network].build()
    shapes, _ = pressable(dense)
    for layer in plan.layers:
        if shapes.get(layer.name) != layer.shape:
            raise ModelMismatchError(
                f"this model is not {network!r}: that has no layer {layer.name!r} "
                f"with a weight {by(layer.shape)}"
            )
    _check_unpressed(network, table_of(dense.state_dict()), table, plan)
    numbers = {name: number for number, name in enumerate(shapes)}
    layers = [(numbers[p.name], None, p.modes, p.ranks, p.core) for p in plan.layers]
    return Description(network, tuple(layers), checksum(table))


def _check_unpressed(network: str, dense: Table, pressed: Table, plan: Plan) -> None:
    """Check that a model has the tensors of a network of the zoo, pressed weights aside."""
    weights = {f"{layer.name}.weight" for layer in plan.layers}
    factors = tuple(f"{layer.name}.parametrizations.weight." for layer in plan.layers)
    expected = [entry for entry in dense if entry.name not in weights]
    found = [entry for entry in pressed if not entry.name.startswith(factors)]
    for one, other in zip_longest(expected, found):
        if one != other:
            raise ModelMismatchError(
                f"this model is not {network!r}: that has {_told(one)}, the model {_told(other)}"
            )


def table_of(tensors: Mapping[str, Tensor]) -> Table:
    """Return the table of a model's stored tensors."""
    return tuple(
        TensorEntry(name, tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in tensors.items()
    )


def checksum(table: Table) -> int:
    """Return a 32-bit checksum of a table."""
    packed: bytes = msgpack.packb([[t.name, t.shape, t.dtype] for t in table])
    return crc32(packed)


def _told(entry: TensorEntry | None) -> str:
    if entry is None:
        return "no more tensors"
    return f"{entry.name!r} ({by(entry.shape) or 'scalar'}, {entry.dtype})"
