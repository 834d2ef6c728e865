"""Integer probability tables for quantized values, the same on every machine.

A symbol is a signed level number: the index of a level less Q/2, so that 0 stands for the value 0
and symbols run from -Q/2 to Q/2; Q/2 is called the *reach*. Tables are built with integer
arithmetic alone, because encoder and decoder must agree on every count.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tensorpress.codec.bit_io import (
    BitReader,
    BitWriter,
    level_codes,
    unzigzag,
    varint_bits,
    zigzag,
)
from tensorpress.errors import CorruptFileError

PRECISION = 24
"""A table's counts sum to 2**24, the precision of the range coder's models."""

Counts = NDArray[np.int64]
Family = Literal["laplace", "gauss"]

# Scales grow by a sixth of an octave, 12 %: the nearest costs at most 0.005 bit a value.
_SIXTHS = (32, 36, 40, 45, 51, 57)
_FIRST_OCTAVE: dict[Family, int] = {"laplace": -8, "gauss": -2}
_LAST_OCTAVE = 14
_SCALES = {family: 6 * (_LAST_OCTAVE + 1 - first) for family, first in _FIRST_OCTAVE.items()}
_HISTOGRAM, _SHARED = 254, 255  # codes; those below name a family and a scale
_CODE_BITS = 8
_FRACTION = 60  # bits after the point in the recurrences for the masses
_FLOOR = PRECISION - 10  # 2**14 of 2**24 counts are spread evenly, for outliers
_MAX_EXPONENT = 38  # of a histogram count
_MANTISSA_BITS = 3  # width of the field that says how many mantissa bits a histogram has


@dataclass(frozen=True, eq=False)
class Prior:
    """Probability table of consecutive symbols.

    Attributes
    ----------
    name : str
        Family: "laplace", "gauss" or "histogram".
    lowest : int
        Symbol of the first entry.
    counts : ndarray of int64
        Probabilities times 2**24; each at least 1, their sum 2**24.
    """

    name: str
    lowest: int
    counts: Counts

    def cost(self, histogram: Counts, lowest: int) -> float:
        """Return the bits that symbols with the given histogram take.

        Parameters
        ----------
        histogram : ndarray of int64
            How often the symbols `lowest`, `lowest` + 1, … occur.
        lowest : int
            Symbol of the histogram's first entry.

        Returns
        -------
        float
            Bits; infinite where a symbol is outside the table.
        """
        start = lowest - self.lowest
        if start < 0 or start + len(histogram) > len(self.counts):
            return float("inf")
        used = self.counts[start : start + len(histogram)]
        return float(histogram @ (PRECISION - np.log2(used)))

    def bits(self, symbols: NDArray[np.int32]) -> float:
        """Return the bits that symbols of the table take."""
        if not symbols.size:
            return 0.0
        lowest = int(symbols.min())
        return self.cost(np.bincount(symbols - lowest), lowest)


@lru_cache(maxsize=64)
def parametric_prior(code: int, reach: int) -> Prior:
    """Return a two-sided geometric ("laplace") or a normal table of all symbols of a quantizer.

    With s the symbol, the mass is proportional to θ**abs(s), θ = σ / (1 + σ), or to q**(s * s),
    q = 2σ² / (1 + 2σ²). Sixteen thousand counts are spread over all symbols, so that one far out
    costs bits but never fails.

    Parameters
    ----------
    code : int
        Family and scale σ in steps of the quantizer, from 0 to 239.
    reach : int
        Q/2.

    Examples
    --------
    >>> prior = parametric_prior(70, reach=32)
    >>> prior.name, prior.lowest, int(prior.counts.sum()) == 2**24
    ('laplace', -32, True)
    """
    family: Family = "laplace" if code < _SCALES["laplace"] else "gauss"
    octave, sixth = divmod(code - _first_code(family), len(_SIXTHS))
    unit = _SIXTHS[0] << -_FIRST_OCTAVE[family]
    scale = _SIXTHS[sixth] << octave
    if family == "gauss":
        scale, unit = 2 * scale**2, unit**2
    ratio = (scale << _FRACTION) // (scale + unit)
    growth = ratio * ratio >> _FRACTION if family == "gauss" else 1 << _FRACTION
    weights = np.zeros(2 * reach + 1, np.int64)
    mass = 1 << _FRACTION
    for k in range(reach + 1):
        weight = mass >> (_FRACTION - 32)
        if not weight:
            break
        weights[reach - k] = weights[reach + k] = weight
        mass = mass * ratio >> _FRACTION
        ratio = ratio * growth >> _FRACTION
    return Prior(family, -reach, _normalized(weights, max(1, (1 << _FLOOR) // len(weights))))


def write_prior(
    writer: BitWriter, symbols: NDArray[np.int32], reach: int, earlier: list[Prior]
) -> tuple[Prior, float]:
    """Choose the table under which a tensor takes the fewest bits, its own included, and write it.

    Parameters
    ----------
    writer : BitWriter
        Where the table's description goes.
    symbols : ndarray of int32
        At least one; all from -`reach` to `reach`.
    reach : int
        Q/2.
    earlier : list of Prior
        Histograms written before, which may be used again; a new one is appended.

    Returns
    -------
    Prior
        The table, exactly as `read_prior` will return it.
    float
        Bits of the table's description and of the symbols under it.
    """
    lowest = int(symbols.min())
    histogram = np.bincount(symbols - lowest)
    code, bits = min(
        (_best_scale(family, histogram, lowest, reach) for family in _SCALES),
        key=lambda choice: choice[1],
    )
    shared, shared_bits = min(
        (
            (i, varint_bits(i) + prior.cost(histogram, lowest))
            for i, prior in enumerate(earlier)
            if _fits(prior, reach)
        ),
        key=lambda choice: choice[1],
        default=(0, float("inf")),
    )
    mantissa, own, own_bits = _best_histogram(histogram, lowest)
    best = min(bits, shared_bits, own_bits)
    if best == bits:
        writer.bits(code, _CODE_BITS)
        return parametric_prior(code, reach), _CODE_BITS + best
    if best == shared_bits:
        writer.bits(_SHARED, _CODE_BITS)
        writer.varint(shared)
        return earlier[shared], _CODE_BITS + best
    writer.bits(_HISTOGRAM, _CODE_BITS)
    _write_histogram(writer, _rounded(histogram, mantissa), lowest, mantissa)
    earlier.append(own)
    return own, _CODE_BITS + best


def read_prior(reader: BitReader, reach: int, earlier: list[Prior]) -> Prior:
    """Read the table that `write_prior` wrote; a new histogram is appended to `earlier`.

    Raises
    ------
    CorruptFileError
        If the bytes do not describe a table of symbols from -`reach` to `reach`.
    """
    code = reader.bits(_CODE_BITS)
    if code < sum(_SCALES.values()):
        return parametric_prior(code, reach)
    if code == _SHARED:
        index = reader.varint()
        if index >= len(earlier):
            raise CorruptFileError("a probability table refers to one that does not exist")
        prior = earlier[index]
    elif code == _HISTOGRAM:
        prior = _read_histogram(reader, reach)
        earlier.append(prior)
    else:
        raise CorruptFileError(f"{code} is no kind of probability table")
    if not _fits(prior, reach):
        raise CorruptFileError("a probability table exceeds the levels of its quantizer")
    return prior


def _fits(prior: Prior, reach: int) -> bool:
    return -reach <= prior.lowest and prior.lowest + len(prior.counts) - 1 <= reach


def _first_code(family: Family) -> int:
    return 0 if family == "laplace" else _SCALES["laplace"]


def _normalized(weights: Counts, floor: int) -> Counts:
    """Return counts of sum 2**24, `floor` each and the rest in proportion to the weights."""
    free = (1 << PRECISION) - floor * len(weights)
    counts: Counts = floor + weights * free // weights.sum()
    left = (1 << PRECISION) - counts.sum()  # less than one for each, lost in rounding down
    counts[np.argsort(-weights, kind="stable")[:left]] += 1
    return counts


def _best_scale(family: Family, histogram: Counts, lowest: int, reach: int) -> tuple[int, float]:
    """Return the code of a family's best table and the bits that the symbols take under it.

    The cost has one minimum over the scales; the moments give a start close to it.
    """
    magnitudes = np.abs(np.arange(lowest, lowest + len(histogram)))
    power = 2 if family == "gauss" else 1
    moment = float(histogram @ magnitudes.astype(np.float64) ** power / histogram.sum())
    octaves = np.log2(max(moment, 1e-9)) / power - _FIRST_OCTAVE[family]
    first, last = _first_code(family), _first_code(family) + _SCALES[family] - 1
    best = min(max(first + round(len(_SIXTHS) * octaves), first), last)
    bits = parametric_prior(best, reach).cost(histogram, lowest)
    for direction in (-1, 1):
        while first <= best + direction <= last:
            next_bits = parametric_prior(best + direction, reach).cost(histogram, lowest)
            if next_bits >= bits:
                break
            best, bits = best + direction, next_bits
    return best, bits


def _best_histogram(histogram: Counts, lowest: int) -> tuple[int, Prior, float]:
    """Return the best number of mantissa bits, the table it gives and the bits of both."""
    choices = []
    ends = varint_bits(zigzag(lowest)) + varint_bits(len(histogram))
    for mantissa in range(1 << _MANTISSA_BITS):
        rounded = _rounded(histogram, mantissa)
        prior = Prior("histogram", lowest, _normalized(rounded, 1))
        exponents = np.frexp(rounded)[1]
        own = ends
        if len(histogram) > 1:
            own += _MANTISSA_BITS + int((level_codes(exponents) + 1).sum())
            own += int(np.clip(exponents - 1, 0, mantissa).sum())
        choices.append((mantissa, prior, own + prior.cost(histogram, lowest)))
    return min(choices, key=lambda choice: choice[2])


def _rounded(histogram: Counts, mantissa: int) -> Counts:
    """Round counts to 1 + `mantissa` significant bits."""
    shifts = np.maximum(np.frexp(histogram)[1] - 1 - mantissa, 0)
    rounded: Counts = ((histogram + (1 << shifts >> 1)) >> shifts) << shifts
    return rounded


def _write_histogram(writer: BitWriter, rounded: Counts, lowest: int, mantissa: int) -> None:
    writer.varint(zigzag(lowest))
    writer.varint(len(rounded))
    if len(rounded) == 1:
        return
    writer.bits(mantissa, _MANTISSA_BITS)
    counts = rounded.tolist()
    writer.levels(np.frexp(rounded)[1])
    for count in counts:
        extra = max(count.bit_length() - 1, 0)
        kept = min(extra, mantissa)
        writer.bits((count >> (extra - kept)) & ((1 << kept) - 1), kept)


def _read_histogram(reader: BitReader, reach: int) -> Prior:
    lowest, size = unzigzag(reader.varint()), reader.varint()
    if size == 0 or lowest < -reach or lowest + size - 1 > reach:
        raise CorruptFileError("a probability table exceeds the levels of its quantizer")
    if size == 1:
        return Prior("histogram", lowest, np.array([1 << PRECISION]))
    mantissa = reader.bits(_MANTISSA_BITS)
    rounded = []
    for exponent in reader.levels(size, _MAX_EXPONENT):
        kept = min(max(exponent - 1, 0), mantissa)
        leading = (1 << kept | reader.bits(kept)) if exponent else 0
        rounded.append(leading << max(exponent - 1 - kept, 0))
    if not any(rounded):
        raise CorruptFileError("a probability table is empty")
    return Prior("histogram", lowest, _normalized(np.array(rounded), 1))


def entropy_bits(symbols: Tensor) -> float:
    """Return the empirical entropy of the values of a tensor, in bits a value.

    Parameters
    ----------
    symbols : Tensor
        Integers, any shape; level numbers for instance.

    Examples
    --------
    >>> entropy_bits(torch.tensor([0, 1, 2, 2]))
    1.5
    """
    counts = torch.unique(symbols, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float((shares * (1 / shares).log2()).sum())
