"""The storage of each tensor of a file, and its numbers in the stream."""

from dataclasses import dataclass
from struct import pack, unpack
from typing import Literal

import torch

from tensorpress.codec.adaptive_coder import SCALES, Stream
from tensorpress.codec.exact_floats import SPLITS
from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
from tensorpress.codec.raw_values import RawStorage
from tensorpress.errors import CorruptFileError, InvalidArgumentError

Coder = Literal["range", "huffman"]
CODERS: tuple[Coder, ...] = ("range", "huffman")


@dataclass(frozen=True)
class Constant:
    """The storage of a tensor whose values are all one float32 number."""

    value: float


Quantizer = UniformQuantizer | StepQuantizer
Unquantized = RawStorage | Literal["coded"]
Storage = Quantizer | Constant | Unquantized
"""A tensor is quantized, one number, stored without entropy coding, or coded losslessly."""

Request = Quantizer | Literal["half", "coded"] | None
"""How to store a tensor: quantized, as float16, coded losslessly, or bit for bit (None)."""

# Kinds of storage in the stream.
_STEP, _ZERO, _ONE, _UNIFORM, _CONSTANT, _CODED = 0, 1, 2, 4, 7, 8
_UNQUANTIZED: dict[int, Unquantized] = {3: "half", 5: "raw", 6: "integers", 8: "coded"}
_KINDS = 9


class StorageCoder:
    """Writes or reads the storage of one tensor after the other.

    Steps and scales are coded as differences from the last ones, separately for vectors and other
    tensors.

    Examples
    --------
    >>> writer = Stream()
    >>> storage = StorageCoder(writer).code(torch.float32, (3, 2), StepQuantizer(-40))
    >>> StorageCoder(Stream(writer.finish())).code(torch.float32, (3, 2))
    StepQuantizer(code=-40)
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._last = {"steps": -40, "step": -40, "scales": 20, "scale": 20}
        self._undo = 0
        self._uniform: list[UniformQuantizer] = []

    def code(
        self, dtype: torch.dtype, shape: tuple[int, ...], storage: Storage | None = None
    ) -> Storage:
        """Code the storage of a tensor.

        Parameters
        ----------
        dtype : torch.dtype
            Type of the tensor.
        shape : tuple of int
            Shape of the tensor.
        storage : Storage, optional
            How the tensor is stored; not needed when reading.

        Returns
        -------
        Storage
            How the tensor is stored.

        Raises
        ------
        CorruptFileError
            If a tensor of this type cannot be stored like this.
        """
        floating = dtype.is_floating_point
        plural = "s" if len(shape) > 1 else ""
        name = f"kind{plural}" if floating else "kind of integers"
        kind = self._stream.number(name, 0 if storage is None else _kind(storage))
        if kind >= _KINDS:
            raise CorruptFileError(f"code {kind} is not a valid storage of a tensor")
        if kind in (_STEP, _UNIFORM) and not floating:
            raise CorruptFileError(f"a tensor of {dtype} cannot have been quantized")
        if kind == _CODED and dtype not in SPLITS:
            raise CorruptFileError(f"a tensor of {dtype} cannot have been coded bit for bit")
        if kind == _CONSTANT and not floating:
            raise CorruptFileError(f"a tensor of {dtype} cannot have been one float32 number")
        try:
            if kind == _STEP:
                code = storage.code if isinstance(storage, StepQuantizer) else 0
                return StepQuantizer(self._code_difference(f"step{plural}", code))
            if kind == _UNIFORM:
                return self._uniform_quantizer(storage)
        except InvalidArgumentError as error:
            raise CorruptFileError(f"a quantizer is damaged: {error}") from error
        if kind in _UNQUANTIZED:
            return _UNQUANTIZED[kind]
        if kind != _CONSTANT:
            return Constant(float(kind == _ONE))
        return Constant(self._float(storage.value if isinstance(storage, Constant) else 0.0))

    def scale(self, shape: tuple[int, ...], scale: int = 0) -> int:
        """Code the scale of a tensor's symbols."""
        name = "scales" if len(shape) > 1 else "scale"
        self._undo = self._last[name]
        scale = self._code_difference(name, scale)
        if not 0 <= scale < SCALES:
            raise CorruptFileError(f"{scale} is not a valid scale of symbols")
        return scale

    def undo_scale(self, shape: tuple[int, ...]) -> None:
        """Undo the last `scale`, of a tensor of this shape, after the stream was rewound."""
        self._last["scales" if len(shape) > 1 else "scale"] = self._undo

    def _code_difference(self, name: str, value: int) -> int:
        """Code a number by its difference from the last one of its name."""
        self._last[name] += self._stream.signed(name, value - self._last[name])
        return self._last[name]

    def _uniform_quantizer(self, storage: Storage | None) -> UniformQuantizer:
        """Code a uniform quantizer by its index in the list of earlier ones, or as a new one."""
        known = self._uniform
        quantizer = storage if isinstance(storage, UniformQuantizer) else None
        index = known.index(quantizer) if quantizer in known else len(known)
        index = self._stream.number("quantizer", index)
        if index < len(known):
            return known[index]
        half = self._stream.number("levels", quantizer.levels // 2 if quantizer else 0)
        bound = self._float(quantizer.bound if quantizer else 0.0)
        known.append(UniformQuantizer(2 * half, bound))
        return known[-1]

    def _float(self, value: float) -> float:
        """Code a float32 number."""
        word = self._stream.word(int.from_bytes(pack(">f", value), "big"))
        result: float = unpack(">f", word.to_bytes(4, "big"))[0]
        return result


def _kind(storage: Storage) -> int:
    """Return the number of a storage's kind."""
    if isinstance(storage, StepQuantizer):
        return _STEP
    if isinstance(storage, UniformQuantizer):
        return _UNIFORM
    if isinstance(storage, Constant):
        return {0.0: _ZERO, 1.0: _ONE}.get(storage.value, _CONSTANT)
    return next(kind for kind, name in _UNQUANTIZED.items() if name == storage)


def quantizer_reach(quantizer: Quantizer, largest: int) -> int:
    """Return the largest symbol of a uniform quantizer, or `largest` for another one."""
    return quantizer.levels // 2 if isinstance(quantizer, UniformQuantizer) else largest
