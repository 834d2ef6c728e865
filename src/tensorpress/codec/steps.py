"""Uniform quantization on every multiple of a step, the steps themselves on a grid."""

from dataclasses import dataclass
from math import floor, isfinite, ldexp, log2

import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError

MIN_CODE, MAX_CODE = -1024, 1023
MAX_SYMBOL = 1 << 23
"""Largest magnitude of a symbol: up to it, float32 tells every level from the next."""

_BLOCK = 1 << 16  # values: what a cache holds
PER_OCTAVE = 8
"""Steps of the grid from a step to its double."""

# 2 ** (k / 8), written out: computed here, it might differ by a bit from machine to machine.
_MANTISSAS = (
    *(1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096),
    *(1.4142135623730951, 1.5422108254079407, 1.681792830507429, 1.8340080864093424),
)


@dataclass(frozen=True)
class StepQuantizer:
    """Uniform quantizer whose levels are all multiples of the step 2**(code / 8).

    A value w becomes ``step * round(w / step)``, ties to the even multiple; nothing is clipped.
    The multiple is the value's symbol, which is what a file stores. Steps lie on a grid of
    9 %, so that one costs a file about a byte, or nothing beside an equal one.

    Parameters
    ----------
    code : int
        Eighths of an octave, from -1024 to 1023.

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
        """Distance of two levels, the same on every machine."""
        octave, eighth = divmod(self.code, PER_OCTAVE)
        return ldexp(_MANTISSAS[eighth], octave)

    def symbols(self, t: Tensor) -> Tensor:
        """Return the multiple of the step nearest to each value.

        Parameters
        ----------
        t : Tensor
            Floating point, any shape, finite.

        Returns
        -------
        Tensor
            int32, the shape of `t`, from -2**23 to 2**23.

        Raises
        ------
        InvalidArgumentError
            If `t` is not floating point, holds NaN or an infinity, or has values of more than
            2**23 steps or whose level its type cannot hold.
        """
        if not t.is_floating_point():
            raise InvalidArgumentError(f"only floating-point tensors are quantized, not {t.dtype}")
        largest = float(t.detach().abs().max()) if t.numel() else 0.0
        if not isfinite(largest):
            raise InvalidArgumentError("a tensor with NaN or infinite values cannot be quantized")
        reach = round(largest / self.step)
        if reach > MAX_SYMBOL:
            raise InvalidArgumentError(
                f"{largest:g} is more than {MAX_SYMBOL:,} steps of {self.step:g}: "
                "take a larger step"
            )
        if not isfinite(self.values(torch.tensor(reach), t.dtype).item()):
            raise InvalidArgumentError(
                f"{largest:g} has no level of step {self.step:g} in {t.dtype}: take a smaller step"
            )
        return (t.detach().double() / self.step).round().to(torch.int32)

    def values(self, symbols: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the levels with the given symbols: one product in float64, then cast.

        Parameters
        ----------
        symbols : Tensor
            Integers, any shape.
        dtype : torch.dtype
            Floating-point type of the result.

        Returns
        -------
        Tensor
            The shape of `symbols`.
        """
        flat = symbols.reshape(-1)
        found = torch.empty(flat.shape, dtype=dtype, device=symbols.device)
        for start in range(0, len(flat), _BLOCK):
            part = slice(start, start + _BLOCK)
            found[part] = flat[part].double() * self.step
        return found.reshape(symbols.shape)

    def __call__(self, t: Tensor) -> Tensor:
        """Return `t` with every value replaced by its level, in the type of `t`."""
        return self.values(self.symbols(t), t.dtype)
