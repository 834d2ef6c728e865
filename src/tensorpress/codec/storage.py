"""How each tensor is stored: the numbers that come before its values."""

from dataclasses import dataclass
from struct import pack, unpack
from typing import Literal

import torch

from tensorpress.codec.adaptive_coder import SCALES, Stream
from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
from tensorpress.codec.raw_values import PlainStorage
from tensorpress.errors import CorruptFileError, InvalidArgumentError

Coder = Literal["range", "huffman"]
CODERS: tuple[Coder, ...] = ("range", "huffman")


@dataclass(frozen=True)
class Constant:
    """One float32 number in all places."""

    value: float


Quantizer = UniformQuantizer | StepQuantizer
Storage = Quantizer | Constant | PlainStorage
"""Quantized, with how values were rounded unsaid; one number; or plain."""

_STEP, _ZERO, _ONE, _UNIFORM, _CONSTANT = 0, 1, 2, 4, 7
_PLAIN: dict[int, PlainStorage] = {3: "half", 5: "raw", 6: "integers"}
_KINDS = 8


class StorageCoder:
    """Write or read how one tensor after the other is stored.

    Steps and scales are told by what they differ from those before them, of tensors of one
    axis and of more apart.

    Examples
    --------
    >>> writer = Stream()
    >>> told = StorageCoder(writer).code(torch.float32, (3, 2), StepQuantizer(-40))
    >>> StorageCoder(Stream(writer.finish())).code(torch.float32, (3, 2))
    StepQuantizer(code=-40)
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._before = {"steps": -40, "step": -40, "scales": 20, "scale": 20}
        self._scale_before = 0
        self._uniform: list[UniformQuantizer] = []

    def code(
        self, dtype: torch.dtype, shape: tuple[int, ...], storage: Storage | None = None
    ) -> Storage:
        """Code the storage of a tensor; in reading, None is given.

        Raises
        ------
        CorruptFileError
            If no tensor of this type is stored so.
        """
        floating = dtype.is_floating_point
        plural = "s" if len(shape) > 1 else ""
        name = f"kind{plural}" if floating else "kind of integers"
        kind = self._stream.number(name, 0 if storage is None else _kind(storage))
        if kind >= _KINDS:
            raise CorruptFileError(f"{kind} is no way to store a tensor")
        if kind in (_STEP, _UNIFORM) and not floating:
            raise CorruptFileError(f"a tensor of {dtype} cannot have been quantized")
        try:
            if kind == _STEP:
                given = storage.code if isinstance(storage, StepQuantizer) else 0
                return StepQuantizer(self._near(f"step{plural}", given))
            if kind == _UNIFORM:
                return self._uniform_quantizer(storage)
        except InvalidArgumentError as error:
            raise CorruptFileError(f"a quantizer is damaged: {error}") from error
        if kind in _PLAIN:
            return _PLAIN[kind]
        if kind != _CONSTANT:
            return Constant(float(kind == _ONE))
        return Constant(self._float(storage.value if isinstance(storage, Constant) else 0.0))

    def scale(self, shape: tuple[int, ...], scale: int = 0) -> int:
        """Code the scale of a tensor's symbols."""
        name = "scales" if len(shape) > 1 else "scale"
        self._scale_before = self._before[name]
        scale = self._near(name, scale)
        if not 0 <= scale < SCALES:
            raise CorruptFileError(f"{scale} is no scale of symbols")
        return scale

    def forget_scale(self, shape: tuple[int, ...]) -> None:
        """Undo the last `scale`, of a tensor of this shape, as the stream has been."""
        self._before["scales" if len(shape) > 1 else "scale"] = self._scale_before

    def _near(self, name: str, value: int) -> int:
        """Code a number by how much it is more than the one before of its name."""
        self._before[name] += self._stream.signed(name, value - self._before[name])
        return self._before[name]

    def _uniform_quantizer(self, storage: Storage | None) -> UniformQuantizer:
        known = self._uniform
        given = storage if isinstance(storage, UniformQuantizer) else None
        index = known.index(given) if given in known else len(known)
        index = self._stream.number("quantizer", index)
        if index < len(known):
            return known[index]
        half = self._stream.number("levels", given.levels // 2 if given else 0)
        known.append(UniformQuantizer(2 * half, self._float(given.bound if given else 0.0)))
        return known[-1]

    def _float(self, value: float) -> float:
        word = self._stream.word(int.from_bytes(pack(">f", value), "big"))
        found: float = unpack(">f", word.to_bytes(4, "big"))[0]
        return found


def _kind(storage: Storage) -> int:
    if isinstance(storage, StepQuantizer):
        return _STEP
    if isinstance(storage, UniformQuantizer):
        return _UNIFORM
    if isinstance(storage, Constant):
        return {0.0: _ZERO, 1.0: _ONE}.get(storage.value, _CONSTANT)
    return next(kind for kind, plain in _PLAIN.items() if plain == storage)


def quantizer_reach(quantizer: Quantizer, largest: int) -> int:
    """Return the largest symbol: of the quantizer, or if that has none, `largest`."""
    return quantizer.levels // 2 if isinstance(quantizer, UniformQuantizer) else largest
