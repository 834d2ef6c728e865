"""Uniform quantization on a symmetric grid."""

from dataclasses import dataclass
from math import isfinite
from struct import pack, unpack
from typing import Literal

import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError

Rounding = Literal["nearest", "floor"]
MAX_LEVELS = 1 << 16
"""Largest Q; beyond it, 16-bit floating point stores as much in no more space."""


@dataclass(frozen=True)
class UniformQuantizer:
    """Uniform quantizer with the Q + 1 levels -b, -b + 2b/Q, …, 0, …, b.

    A value w is clipped to [-b, b] and becomes

        w_q = -b + floor((clip(w, -b, b) + b) · Q / 2b) · 2b/Q

    with ``rounding="floor"``, the formula as printed, which is biased by half a step towards -b;
    ``rounding="nearest"`` takes the nearest level instead (ties to the even symbol). A value that
    already is a level, in the precision of its tensor, stays it under both.

    Parameters
    ----------
    levels : int
        Q, even so that 0 is a level, from 2 to 65536.
    bound : float
        b > 0, in the units of the values. It is rounded to float32, the precision in which a file
        keeps it, so that training, encoding and decoding use the same levels.
    rounding : {"nearest", "floor"}
        How a value between two levels is rounded.

    Raises
    ------
    InvalidArgumentError
        If `levels`, `bound` or `rounding` is not as above.

    References
    ----------
    .. [1] Z. Zhong, F. Wei, Z. Lin, C. Zhang, "ADA-Tucker: Compressing deep neural networks via
       adaptive dimension adjustment Tucker decomposition", Neural Networks 110 (2019), eq. 13.

    Examples
    --------
    >>> import torch
    >>> quantizer = UniformQuantizer(levels=4, bound=1.0)
    >>> quantizer.indices(torch.tensor([-2.0, -0.3, 0.0, 0.3, 0.9]))
    tensor([0, 1, 2, 3, 4], dtype=torch.int32)
    >>> quantizer(torch.tensor([-2.0, -0.3, 0.0, 0.3, 0.9]))
    tensor([-1.0000, -0.5000,  0.0000,  0.5000,  1.0000])
    """

    levels: int
    bound: float
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if self.levels % 2 or not 2 <= self.levels <= MAX_LEVELS:
            raise InvalidArgumentError(
                f"levels must be an even number from 2 to {MAX_LEVELS}, not {self.levels}"
            )
        if self.rounding not in ("nearest", "floor"):
            raise InvalidArgumentError(
                f"rounding must be 'nearest' or 'floor', not {self.rounding!r}"
            )
        try:
            stored: float = unpack("<f", pack("<f", self.bound))[0]
        except OverflowError:
            stored = float("inf")
        if not (isfinite(stored) and stored > 0):
            raise InvalidArgumentError(
                f"bound must be a positive finite number in float32, not {self.bound}"
            )
        object.__setattr__(self, "bound", stored)

    @property
    def step(self) -> float:
        """Distance 2b/Q between two levels."""
        return 2 * self.bound / self.levels

    def indices(self, t: Tensor) -> Tensor:
        """Return the level number of every value.

        Parameters
        ----------
        t : Tensor
            Floating point, any shape, finite.

        Returns
        -------
        Tensor
            int32, the shape of `t`, from 0 (level -b) over Q/2 (level 0) to Q (level b).

        Raises
        ------
        InvalidArgumentError
            If `t` is not floating point or holds NaN or an infinity.
        """
        if not t.is_floating_point():
            raise InvalidArgumentError(f"only floating-point tensors are quantized, not {t.dtype}")
        if not torch.isfinite(t).all():
            raise InvalidArgumentError("a tensor with NaN or infinite values cannot be quantized")
        clipped = t.detach().double().clamp(-self.bound, self.bound)
        steps = clipped * self.levels / (2 * self.bound)
        nearest = steps.round()
        if self.rounding == "floor":
            # A level rounded to t's precision may lie just below itself; floor would lose it.
            on_level = self._values(nearest).to(t.dtype) == t
            nearest = torch.where(on_level, nearest, steps.floor())
        return nearest.to(torch.int32) + self.levels // 2

    def values(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the levels with the given numbers.

        Each is computed in float64 by one exact product and one division, and then cast: the
        result is the same on every machine.

        Parameters
        ----------
        indices : Tensor
            Integers from 0 to Q, any shape.
        dtype : torch.dtype
            Floating-point type of the result.

        Returns
        -------
        Tensor
            The shape of `indices`.
        """
        return self._values(indices.double() - self.levels // 2).to(dtype)

    def _values(self, symbols: Tensor) -> Tensor:
        return symbols * (2 * self.bound) / self.levels

    def __call__(self, t: Tensor) -> Tensor:
        """Return `t` with every value replaced by its level, in the type of `t`."""
        return self.values(self.indices(t), t.dtype)
