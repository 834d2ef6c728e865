"""The header of a network of the zoo: numbers for the network and how it is pressed."""

from collections.abc import Sequence
from math import isqrt, prod
from typing import Any

import msgpack

from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.container import name_file_in_errors
from tensorpress.codec.header import (
    MAX_MODES,
    Description,
    MalformedError,
    PackedLayer,
    check_layers,
    dense_network,
    plan_from_header,
    pressed_table,
    require,
)
from tensorpress.codec.named_header import CORES, read_layer
from tensorpress.errors import CorruptFileError, ModelMismatchError
from tensorpress.planning.layers import find_pressable
from tensorpress.schemes.reshape_modes import Shape

# Files contain indices into these lists, so append only. Schemes without a number, and layers with
# options, are written by name.
NETWORK_NUMBERS = (
    *("lenet5", "lenet300100", "fc1024", "cifar-cnn", "resnet20", "resnet32", "resnet56"),
    *("wrn28-10", "clips3d", "vgg16", "vgg16-quarter", "conv-fc", "nin"),
)
SCHEME_NUMBERS = (
    *("channel_svd", "spatial_svd", "spatial_svd_horizontal", "tucker1_in", "tucker1_out"),
    *("tucker2", "cp", "cp_nls", "cp_corrected", "tensor_train", "tt_conv", "tt_weight"),
    *("spatial_channel_svd", "low_rank_sparse", "channel_pruning", "svd_weight", "pivoted_svd"),
)

# The kind of a layer is 0 for a dense layer, then the number of its core or scheme.
_BY_NAME, _FIRST_SCHEME = 5, 8
_LARGEST = 1 << 22
_LARGEST_NAMED = 1 << 12  # bytes of a name with options


def write_network(stream: Stream, description: Description) -> None:
    """Write the number of a network of the zoo, or 0 for any other network."""
    name = description.network
    stream.number("network", 0 if name is None else 1 + NETWORK_NUMBERS.index(name))


def read_network(file: str, stream: Stream) -> str | None:
    """Read the name of a network, or None.

    Raises
    ------
    ModelMismatchError
        If this version does not have it.
    """
    number = stream.number("network")
    if number > len(NETWORK_NUMBERS):
        raise ModelMismatchError(
            f"{file} is of network number {number}, which this version does not have "
            f"(known: {', '.join(NETWORK_NUMBERS)})"
        )
    return NETWORK_NUMBERS[number - 1] if number else None


def write_layers(stream: Stream, description: Description) -> None:
    """Write how each layer of a network of the zoo is pressed."""
    shapes, _ = find_pressable(dense_network(description.network or ""))
    layers = _Layers(stream)
    packed = {layer.name: layer for layer in description.layers}
    for name, shape in shapes.items():
        layers.code(name, shape, packed.get(name))


def read_layers(file: str, stream: Stream, network: str) -> Description:
    """Read the layers that `write_layers` wrote, from an untrusted file.

    Raises
    ------
    CorruptFileError
        If the layers do not describe a pressed model, or need far more memory than its weights.
    ModelMismatchError
        If this version does not have a scheme, or the scheme does not apply to its layer.
    """
    dense = dense_network(network)
    shapes, _ = find_pressable(dense)
    coder = _Layers(stream, file)
    with name_file_in_errors(file):
        try:
            entries = [coder.code(name, shape) for name, shape in shapes.items()]
            layers = tuple(layer for layer in entries if layer is not None)
            check_layers(layers)
        except MalformedError:
            raise CorruptFileError("the header does not describe a model") from None
    return Description(network, layers, pressed_table(dense, plan_from_header(file, dense, layers)))


class _Layers:
    """Codes layers: writes the layer that it is passed, or reads and returns one."""

    def __init__(self, stream: Stream, file: str = "") -> None:
        self._stream, self._file = stream, file
        self._rank = 4

    def code(self, name: str, shape: Shape, layer: PackedLayer | None = None) -> PackedLayer | None:
        kind = self._stream.number("layer", _kind(layer))
        if kind == 0:
            return None
        ranks = layer.ranks if layer else ()
        if kind <= len(CORES):
            modes = self._modes(shape, layer.options["modes"] if layer else ())
            scheme, flags = CORES[kind - 1]
            ranks = self._ranks(len(modes), ranks)
            return PackedLayer(name, shape, scheme, ranks, {"modes": modes, **flags})
        number = kind - _FIRST_SCHEME
        self._expect(number >= 0 or kind == _BY_NAME)
        if number >= len(SCHEME_NUMBERS):
            raise ModelMismatchError(
                f"{self._file}: layer {name!r} has a scheme that this version does not have "
                f"(known: {', '.join(SCHEME_NUMBERS)})"
            )
        named: list[Any] = [SCHEME_NUMBERS[number], {}]
        if kind == _BY_NAME:
            named = self._named(layer)
        count = 1 + self._stream.number("ranks", len(ranks) - 1 if layer else 0)
        self._expect(count <= MAX_MODES)
        ranks = self._ranks(count, ranks)
        if layer is not None:
            return layer
        return read_layer(self._file, name, shape, named[0], list(ranks), named[1])

    def _named(self, layer: PackedLayer | None) -> list[Any]:
        """Code the name and the options of a scheme, as msgpack."""
        data = msgpack.packb([layer.scheme, dict(layer.options)]) if layer else b""
        size = self._stream.number("named", len(data))
        self._expect(size <= _LARGEST_NAMED)
        data = bytes(self._stream.choice(256, data[k] if layer else 0) for k in range(size))
        try:
            named = msgpack.unpackb(data, raw=False)
        except ValueError:
            raise MalformedError from None
        require(isinstance(named, list) and len(named) == 2 and isinstance(named[0], str))
        return list(named)

    def _expect(self, condition: bool) -> None:
        """Check a condition on the header when it is read."""
        require(condition or self._stream.writing)

    def _modes(self, shape: Shape, modes: Shape) -> Shape:
        """Code all modes but the last, each by its index among the divisors of what remains."""
        if self._stream.number("original", int(modes == shape)):
            return shape
        count = 1 + self._stream.number("modes", max(len(modes) - 1, 0))
        self._expect(count <= MAX_MODES)
        left, result = prod(shape), []
        for k in range(count - 1):
            divisors = _divisors(left)
            place = divisors.index(modes[k]) if modes else 0
            result.append(divisors[self._stream.choice(len(divisors), place)])
            left //= result[-1]
        return (*result, left)

    def _ranks(self, count: int, ranks: Sequence[int]) -> Shape:
        equal = self._stream.number("equal", int(len(set(ranks)) == 1)) > 0
        result: list[int] = []
        for k in range(1 if equal else count):
            self._rank += self._stream.signed("rank", ranks[k] - self._rank if ranks else 0)
            self._expect(1 <= self._rank <= _LARGEST)
            result.append(self._rank)
        return tuple(result * count if equal else result)


def _kind(layer: PackedLayer | None) -> int:
    """Return 0 for a dense layer, then the cores of Tucker factors, then the schemes."""
    if layer is None:
        return 0
    options = dict(layer.options)
    if options.pop("modes", None) and (layer.scheme, options) in CORES:
        return 1 + CORES.index((layer.scheme, options))
    if layer.options or layer.scheme not in SCHEME_NUMBERS:
        return _BY_NAME
    return _FIRST_SCHEME + SCHEME_NUMBERS.index(layer.scheme)


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})
