"""The header of a `.tpz` file: which network, which plan, which tensors, in few bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple, get_args
from zlib import crc32

import msgpack
import torch
from torch import Tensor, nn

from tensorpress.codec.contents import distinct_state
from tensorpress.codec.costs import affordable
from tensorpress.errors import CorruptFileError, InvalidArgumentError, ModelMismatchError
from tensorpress.planning.layer_plans import Core, LayerPlan, PlannedLayer, SchemePlan
from tensorpress.planning.layers import pressable
from tensorpress.planning.plan import Plan
from tensorpress.planning.read_back import plan_of
from tensorpress.pressing import skeleton
from tensorpress.schemes.dimensions import Shape, by
from tensorpress.schemes.layer import describe as describe_layer
from tensorpress.schemes.tucker_weight import TuckerWeight
from tensorpress.zoo import NETWORKS

CORES: tuple[Core, ...] = get_args(Core)


class PackedTucker(NamedTuple):
    """A weight in Tucker factors; ``ref`` is a number and ``shape`` None in the zoo's networks."""

    ref: str | int
    shape: Shape | None
    modes: Shape
    ranks: Shape
    core: Core

    def pack(self) -> list[Any]:
        """Return it as msgpack takes it, without the shape."""
        ranks = self.ranks[0] if len(set(self.ranks)) == 1 else self.ranks
        core = [] if self.core == "own" else [CORES.index(self.core)]
        return [self.ref, self.modes, ranks, *core]


class PackedScheme(NamedTuple):
    """A layer pressed by a scheme of the registry; ``ref`` and ``shape`` as of a `PackedTucker`."""

    ref: str | int
    shape: Shape | None
    scheme: str
    ranks: Shape

    def pack(self) -> list[Any]:
        """Return it as msgpack takes it, without the shape."""
        return [self.ref, self.scheme, self.ranks[0] if len(self.ranks) == 1 else self.ranks]


PackedLayer = PackedTucker | PackedScheme


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
        layers = [
            layer.pack() if layer.shape is None else [layer.shape, *layer.pack()]
            for layer in self.layers
        ]
        tensors = self.tensors
        if not isinstance(tensors, int):
            return [self.network, layers, [[t.name, t.shape, t.dtype] for t in tensors]]
        return [self.network, layers, tensors]

    def plan_for(self, file: str, dense: nn.Module) -> Plan:
        """Return the plan to press a dense model with.

        Raises
        ------
        ModelMismatchError
            If a layer is missing, has another shape or cannot be what the file says.
        CorruptFileError
            If the modes and ranks fit no weight.
        """
        shapes, kept = pressable(dense)
        names = list(shapes)
        layers = []
        for packed in self.layers:
            if isinstance(packed.ref, int) and packed.ref >= len(names):
                raise ModelMismatchError(
                    f"{file} was made from a network with more than {len(names)} layers"
                )
            name = names[packed.ref] if isinstance(packed.ref, int) else packed.ref
            found = shapes.get(name)
            if found is None or packed.shape not in (None, found):
                has = (
                    f"the model has a weight {by(found)}"
                    if found
                    else "the model has no such layer"
                )
                raise ModelMismatchError(
                    f"{file} expects a layer {name!r} with a weight {by(packed.shape or ())}; "
                    + (f"in the model {kept[name]}" if name in kept else has)
                )
            try:
                layers.append(_planned(name, dense.get_submodule(name), found, packed))
            except InvalidArgumentError as error:
                given = isinstance(packed, PackedTucker) and packed.shape
                kind = CorruptFileError if given else ModelMismatchError
                raise kind(f"{file}: layer {name!r}: {error}") from None
        if not affordable(layers):
            raise ModelMismatchError(
                f"{file} holds factors far larger than the weights of this model"
            )
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
        If the model is not the network of the zoo it is said to be, or is pressed in a way that
        no plan describes.
    InvalidArgumentError
        If its factors are far larger than the weights they stand for.
    """
    plan = plan_of(model)
    if not affordable(plan.layers):
        raise InvalidArgumentError(
            "the model's factors are far larger than the weights they stand for: save it dense"
        )
    table = table_of(tensors)
    if network is None:
        return Description(None, tuple(_packed(p, p.name, p.shape) for p in plan.layers), table)
    with torch.device("meta"):
        dense = NETWORKS[network].build()
    shapes, _ = pressable(dense)
    for layer in plan.layers:
        if shapes.get(layer.name) != layer.shape:
            raise ModelMismatchError(
                f"this model is not {network!r}: that has no layer {layer.name!r} "
                f"with a weight {by(layer.shape)}"
            )
    try:
        expected = table_of(distinct_state(skeleton(dense, plan)))
    except ModelMismatchError as error:
        raise ModelMismatchError(f"this model is not {network!r}: {error}") from None
    for one, other in zip_longest(expected, table):
        if one != other:
            raise ModelMismatchError(
                f"this model is not {network!r}: that has {_told(one)}, the model {_told(other)}"
            )
    numbers = {name: number for number, name in enumerate(shapes)}
    layers = tuple(_packed(layer, numbers[layer.name], None) for layer in plan.layers)
    return Description(network, layers, checksum(table))


def _packed(layer: PlannedLayer, ref: str | int, shape: Shape | None) -> PackedLayer:
    if isinstance(layer, LayerPlan):
        return PackedTucker(ref, shape, layer.modes, layer.ranks, layer.core)
    return PackedScheme(ref, shape, layer.scheme, layer.ranks)


def _planned(name: str, layer: nn.Module, shape: Shape, packed: PackedLayer) -> PlannedLayer:
    """Return the plan of a layer, or raise an `InvalidArgumentError` for what does not fit it."""
    if isinstance(packed, PackedTucker):
        modes, ranks, core = packed.modes, packed.ranks, packed.core
        TuckerWeight(shape, modes, ranks, diagonal=core == "diagonal")
        return LayerPlan(name, shape, modes, ranks, core)
    plan = SchemePlan(name, packed.scheme, describe_layer(layer), packed.ranks)
    plan.check()
    return plan


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
