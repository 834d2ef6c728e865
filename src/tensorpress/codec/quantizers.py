"""The two quantizers: a symmetric grid of levels, and all multiples of a step."""

from dataclasses import dataclass
from math import floor, isfinite, ldexp, log2
from struct import pack, unpack
from typing import Literal

import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError

Rounding = Literal["nearest", "floor"]
MAX_LEVELS = 1 << 16
"""Largest Q; beyond it, 16-bit floating point stores as many values in no more space."""

MIN_CODE, MAX_CODE = -1024, 1023
MAX_SYMBOL = 1 << 23
"""Largest magnitude of a symbol: up to it, float32 distinguishes every level from the next."""

PER_OCTAVE = 8
"""Number of steps on the grid from a step to its double."""

# 2 ** (k / 8), written out, because its last bit could differ between machines.
_MANTISSAS = (
    *(1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096),
    *(1.4142135623730951, 1.5422108254079407, 1.681792830507429, 1.8340080864093424),
)
_BLOCK = 1 << 16  # values that fit into a cache


@dataclass(frozen=True)
class UniformQuantizer:
    """A uniform quantizer with the Q + 1 levels -b, -b + 2b/Q, …, 0, …, b.

    A value w is clipped to [-b, b] and becomes

        w_q = -b + floor((clip(w, -b, b) + b) · Q / 2b) · 2b/Q

    with ``rounding="floor"``, the formula of the paper, which is biased by half a step towards -b.
    ``rounding="nearest"`` takes the nearest level instead (ties to the even symbol). Both leave a
    value that is a level in its tensor's precision unchanged.

    Parameters
    ----------
    levels : int
        The number Q of steps from -b to b, from 2 to 65536; even, so that 0 is a level.
    bound : float
        The largest level b > 0, in the units of the values. It is rounded to float32, as in a file,
        so that training, encoding and decoding use the same levels.
    rounding : {"nearest", "floor"}
        How a value between two levels is rounded.

    Raises
    ------
    InvalidArgumentError
        If `levels`, `bound` or `rounding` is invalid.

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
            bound: float = unpack("<f", pack("<f", self.bound))[0]
        except OverflowError:
            bound = float("inf")
        if not (isfinite(bound) and bound > 0):
            raise InvalidArgumentError(
                f"bound must be a positive finite number in float32, not {self.bound}"
            )
        object.__setattr__(self, "bound", bound)

    @property
    def step(self) -> float:
        """The distance 2b/Q between two levels."""
        return 2 * self.bound / self.levels

    def indices(self, t: Tensor) -> Tensor:
        """Return the level number of every value.

        Parameters
        ----------
        t : Tensor
            Finite floating-point values, any shape.

        Returns
        -------
        Tensor
            int32 numbers from 0 (level -b) over Q/2 (level 0) to Q (level b), the shape of `t`.

        Raises
        ------
        InvalidArgumentError
            If `t` is not floating point, or has NaN or infinite values.
        """
        _largest_magnitude(t)
        clipped = t.detach().double().clamp(-self.bound, self.bound)
        steps = clipped * self.levels / (2 * self.bound)
        nearest = steps.round()
        if self.rounding == "floor":
            # A level rounded to t's precision may lie just below itself; floor would lose it.
            on_level = self._values(nearest).to(t.dtype) == t
            nearest = torch.where(on_level, nearest, steps.floor())
        return nearest.to(torch.int32) + self.levels // 2

    def values(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the levels with these numbers.

        Each is computed in float64 by one exact product and one division, then cast, so that
        results are the same on every machine.

        Parameters
        ----------
        indices : Tensor
            Integers from 0 to Q, any shape.
        dtype : torch.dtype
            Floating-point type of the result.

        Returns
        -------
        Tensor
            The levels, the shape of `indices`.
        """
        return self._values(indices.double() - self.levels // 2).to(dtype)

    def _values(self, symbols: Tensor) -> Tensor:
        return symbols * (2 * self.bound) / self.levels

    def __call__(self, t: Tensor) -> Tensor:
        """Return `t` with every value replaced by its level, in the type of `t`."""
        return self.values(self.indices(t), t.dtype)


@dataclass(frozen=True)
class StepQuantizer:
    """A uniform quantizer whose levels are all multiples of the step 2**(code / 8).

    A value w becomes ``step * round(w / step)``, ties to the even multiple; nothing is clipped.
    A file stores the multiple, the symbol of the value. Steps are 9 % apart, so a step takes about
    a byte in a file, and hardly anything after an equal one.

    Parameters
    ----------
    code : int
        Base-2 logarithm of the step in eighths, from -1024 to 1023.

    Raises
    ------
    InvalidArgumentError
        If `code` is out of range.

    Examples
    --------
    >>> import torch
    >>> quantizer = StepQuantizer(-16)
    >>> quantizer.step, StepQuantizer.nearest(0.26) == quantizer
    (0.25, True)
    >>> quantizer.symbols(torch.tensor([-0.6, 0.1, 0.2]))
    tensor([-2,  0,  1], dtype=torch.int32)
    >>> quantizer(torch.tensor([-0.6, 0.1, 0.2]))
    tensor([-0.5000,  0.0000,  0.2500])
    """

    code: int

    def __post_init__(self) -> None:
        if not MIN_CODE <= self.code <= MAX_CODE:
            raise InvalidArgumentError(
                f"the code of a step must be from {MIN_CODE} to {MAX_CODE}, not {self.code}"
            )

    @classmethod
    def nearest(cls, step: float) -> "StepQuantizer":
        """Return the quantizer whose step is nearest to `step`, in ratio.

        Raises
        ------
        InvalidArgumentError
            If `step` is not a number between the smallest and the largest step.
        """
        if not (isfinite(step) and step > 0):
            raise InvalidArgumentError(f"a step must be a positive finite number, not {step}")
        return cls(floor(PER_OCTAVE * log2(step) + 0.5))

    @property
    def step(self) -> float:
        """The distance between two levels, the same on every machine."""
        octave, eighth = divmod(self.code, PER_OCTAVE)
        return ldexp(_MANTISSAS[eighth], octave)

    def symbols(self, t: Tensor) -> Tensor:
        """Return the multiple of the step nearest to each value.

        Parameters
        ----------
        t : Tensor
            Finite floating-point values, any shape.

        Returns
        -------
        Tensor
            int32 numbers from -2**23 to 2**23, the shape of `t`.

        Raises
        ------
        InvalidArgumentError
            If `t` is not floating point, has NaN or infinite values, a value of more than 2**23
            steps, or a level that overflows its type.
        """
        largest = _largest_magnitude(t)
        symbol = round(largest / self.step)
        if symbol > MAX_SYMBOL:
            raise InvalidArgumentError(
                f"{largest:g} is more than {MAX_SYMBOL:,} steps of {self.step:g}: "
                "take a larger step"
            )
        if not isfinite(self.values(torch.tensor(symbol), t.dtype).item()):
            raise InvalidArgumentError(
                f"{largest:g} has no level of step {self.step:g} in {t.dtype}: take a smaller step"
            )
        return (t.detach().double() / self.step).round().to(torch.int32)

    def values(self, symbols: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the levels of symbols, each computed by one product in float64 and then cast.

        Parameters
        ----------
        symbols : Tensor
            Integers, any shape.
        dtype : torch.dtype
            Floating-point type of the result.

        Returns
        -------
        Tensor
            The levels, the shape of `symbols`.
        """
        flat = symbols.reshape(-1)
        result = torch.empty(flat.shape, dtype=dtype, device=symbols.device)
        for start in range(0, len(flat), _BLOCK):
            block = slice(start, start + _BLOCK)
            result[block] = flat[block].double() * self.step
        return result.reshape(symbols.shape)

    def __call__(self, t: Tensor) -> Tensor:
        """Return `t` with every value replaced by its level, in the type of `t`."""
        return self.values(self.symbols(t), t.dtype)


def _largest_magnitude(t: Tensor) -> float:
    """Return the largest magnitude of a tensor; raise unless it is finite and floating point."""
    if not t.is_floating_point():
        raise InvalidArgumentError(f"only floating-point tensors are quantized, not {t.dtype}")
    largest = float(t.detach().abs().max()) if t.numel() else 0.0
    if not isfinite(largest):
        raise InvalidArgumentError("a tensor with NaN or infinite values cannot be quantized")
    return largest
