"""Integer probability tables for quantized values, the same on every machine.

A symbol is the signed number of a level, its index minus Q/2: 0 is the value 0, and symbols run
from -Q/2 to Q/2, which is called the *reach*. Tables are built with integer arithmetic only,
because encoder and decoder must agree on every count.
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
    Symbols,
    level_codes,
    unzigzag,
    varint_bits,
    zigzag,
)
from tensorpress.errors import CorruptFileError

PRECISION = 24
"""Bits of a probability: a table's counts sum to 2**24, as in the range coder's models."""

Counts = NDArray[np.int64]
Family = Literal["laplace", "gauss"]

# Scales are a sixth of an octave, 12 %, apart: the nearest costs at most 0.005 bits per value.
_SIXTHS = (32, 36, 40, 45, 51, 57)
_FIRST_OCTAVE: dict[Family, int] = {"laplace": -8, "gauss": -2}
_LAST_OCTAVE = 14
_SCALES = {family: 6 * (_LAST_OCTAVE + 1 - first) for family, first in _FIRST_OCTAVE.items()}
_HISTOGRAM, _SHARED = 254, 255  # kinds of tables; smaller codes are a family and a scale
_CODE_BITS = 8
_FRACTION = 60  # bits after the point in the recurrences for the masses
_FLOOR = PRECISION - 10  # 2**14 of 2**24 counts are distributed evenly, for outliers
_MAX_EXPONENT = 38  # binary digits of a histogram's count
_MANTISSA_BITS = 3  # width of the field that says how many mantissa bits a histogram has


@dataclass(frozen=True, eq=False)
class Prior:
    """A probability table of consecutive symbols.

    Attributes
    ----------
    name : str
        Family: "laplace", "gauss" or "histogram".
    lowest : int
        The symbol of the first entry.
    counts : ndarray of int64
        Probabilities times 2**24, shape (symbols,); each is at least 1, and their sum is 2**24.
    """

    name: str
    lowest: int
    counts: Counts

    def cost(self, histogram: Counts, lowest: int) -> float:
        """Return the bits that symbols with this histogram take.

        Parameters
        ----------
        histogram : ndarray of int64
            Counts of the symbols `lowest`, `lowest` + 1, ….
        lowest : int
            The symbol of the histogram's first entry.

        Returns
        -------
        float
            Bits; infinite if a symbol is not in the table.
        """
        start = lowest - self.lowest
        if start < 0 or start + len(histogram) > len(self.counts):
            return float("inf")
        # sum_s n_s (24 - log2 c_s), with n the histogram and c the counts
        counts = self.counts[start : start + len(histogram)]
        return float(histogram @ (PRECISION - np.log2(counts)))

    def bits(self, symbols: Symbols) -> float:
        """Return the bits that symbols take with this table."""
        if not symbols.size:
            return 0.0
        lowest = int(symbols.min())
        return self.cost(np.bincount(symbols - lowest), lowest)


@lru_cache(maxsize=64)
def parametric_prior(code: int, reach: int) -> Prior:
    """Return a two-sided geometric ("laplace") or normal ("gauss") table of a quantizer's symbols.

    The probability of symbol s is proportional to θ**abs(s), θ = σ / (1 + σ), or to q**(s * s), q =
    2σ² / (1 + 2σ²). 2**14 counts are distributed evenly, so that rare symbols have a code.

    Parameters
    ----------
    code : int
        A number from 0 to 239 for the family and the scale σ, in steps of the quantizer.
    reach : int
        The largest symbol, Q/2.

    Examples
    --------
    >>> prior = parametric_prior(70, reach=32)
    >>> prior.name, prior.lowest, int(prior.counts.sum()) == 2**24
    ('laplace', -32, True)
    """
    family: Family = "laplace" if code < _SCALES["laplace"] else "gauss"
    # The scale σ as the fraction scale / unit; of the normal family, 2σ².
    octave, sixth = divmod(code - _first_code(family), len(_SIXTHS))
    unit = _SIXTHS[0] << -_FIRST_OCTAVE[family]
    scale = _SIXTHS[sixth] << octave
    if family == "gauss":
        scale, unit = 2 * scale**2, unit**2
    # Masses by a recurrence: m_{k+1} = m_k r_k, r_{k+1} = r_k g. The ratio r_0 is θ or q, and the
    # growth g is 1, or q² because (k + 1)² - k² = 2k + 1.
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
    floor = max(1, (1 << _FLOOR) // len(weights))
    return Prior(family, -reach, normalize_counts(weights, floor))


def write_prior(
    writer: BitWriter, symbols: Symbols, reach: int, earlier: list[Prior]
) -> tuple[Prior, float]:
    """Choose the table with the fewest bits for table and symbols, and write it.

    Parameters
    ----------
    writer : BitWriter
        The writer that the table is appended to.
    symbols : ndarray of int32
        The symbols of a tensor, at least one, all from -`reach` to `reach`.
    reach : int
        The largest symbol of the quantizer, Q/2.
    earlier : list of Prior
        Histograms that were written before and may be reused; a new one is appended.

    Returns
    -------
    Prior
        The table, exactly as `read_prior` will return it.
    float
        Bits of the table and of the symbols.
    """
    # Three kinds: a family at its best scale, a histogram of an earlier tensor, a new histogram.
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
            if _is_within(prior, reach)
        ),
        key=lambda choice: choice[1],
        default=(0, float("inf")),
    )
    mantissa, prior, histogram_bits = _best_histogram(histogram, lowest)
    best = min(bits, shared_bits, histogram_bits)
    if best == bits:
        writer.bits(code, _CODE_BITS)
        return parametric_prior(code, reach), _CODE_BITS + best
    if best == shared_bits:
        writer.bits(_SHARED, _CODE_BITS)
        writer.varint(shared)
        return earlier[shared], _CODE_BITS + best
    writer.bits(_HISTOGRAM, _CODE_BITS)
    write_counts(writer, round_counts(histogram, mantissa), lowest, mantissa)
    earlier.append(prior)
    return prior, _CODE_BITS + best


def read_prior(reader: BitReader, reach: int, earlier: list[Prior]) -> Prior:
    """Read a table that `write_prior` wrote.

    Parameters
    ----------
    reader : BitReader
        The tables.
    reach : int
        The largest symbol of the quantizer, Q/2.
    earlier : list of Prior
        Histograms that were read before; a new one is appended.

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
            raise CorruptFileError(
                f"a probability table refers to histogram {index}, which does not exist"
            )
        prior = earlier[index]
    elif code == _HISTOGRAM:
        lowest, counts = read_counts(reader, -reach, reach)
        prior = Prior("histogram", lowest, normalize_counts(counts, 1))
        earlier.append(prior)
    else:
        raise CorruptFileError(f"{code} is not a kind of probability table")
    if not _is_within(prior, reach):
        raise CorruptFileError("a probability table exceeds the levels of its quantizer")
    return prior


def _is_within(prior: Prior, reach: int) -> bool:
    """Return whether all symbols of a table are symbols of a quantizer."""
    return -reach <= prior.lowest and prior.lowest + len(prior.counts) - 1 <= reach


def _first_code(family: Family) -> int:
    """Return the code of a family's smallest scale."""
    return 0 if family == "laplace" else _SCALES["laplace"]


def normalize_counts(weights: Counts, floor: int, precision: int = PRECISION) -> Counts:
    """Return counts of sum 2**precision: `floor` per symbol, the rest as weights."""
    free = (1 << precision) - floor * len(weights)
    counts: Counts = floor + weights * free // weights.sum()
    # Rounding down lost less than one count per symbol: the largest weights get one more each.
    missing = (1 << precision) - counts.sum()
    counts[np.argsort(-weights, kind="stable")[:missing]] += 1
    return counts


def _best_scale(family: Family, histogram: Counts, lowest: int, reach: int) -> tuple[int, float]:
    """Return the code of a family's best table and the bits of the symbols."""
    # Start at the scale of maximum likelihood: σ = E|s|, or σ² = E s².
    magnitudes = np.abs(np.arange(lowest, lowest + len(histogram)))
    power = 2 if family == "gauss" else 1
    moment = float(histogram @ magnitudes.astype(np.float64) ** power / histogram.sum())
    octaves = np.log2(max(moment, 1e-9)) / power - _FIRST_OCTAVE[family]
    first, last = _first_code(family), _first_code(family) + _SCALES[family] - 1
    best = min(max(first + round(len(_SIXTHS) * octaves), first), last)
    bits = parametric_prior(best, reach).cost(histogram, lowest)
    # Descend in both directions: as a function of the scale, the cost has one minimum.
    for direction in (-1, 1):
        while first <= best + direction <= last:
            next_bits = parametric_prior(best + direction, reach).cost(histogram, lowest)
            if next_bits >= bits:
                break
            best, bits = best + direction, next_bits
    return best, bits


def _best_histogram(histogram: Counts, lowest: int) -> tuple[int, Prior, float]:
    """Return the best number of mantissa bits, its table, and the bits of table and symbols."""
    choices = []
    range_bits = varint_bits(zigzag(lowest)) + varint_bits(len(histogram))
    for mantissa in range(1 << _MANTISSA_BITS):
        rounded = round_counts(histogram, mantissa)
        prior = Prior("histogram", lowest, normalize_counts(rounded, 1))
        # As `write_counts` writes them: exponents in unary, then the mantissas.
        exponents = np.frexp(rounded)[1]
        table_bits = range_bits
        if len(histogram) > 1:
            table_bits += _MANTISSA_BITS + int((level_codes(exponents) + 1).sum())
            table_bits += int(np.clip(exponents - 1, 0, mantissa).sum())
        choices.append((mantissa, prior, table_bits + prior.cost(histogram, lowest)))
    return min(choices, key=lambda choice: choice[2])


def round_counts(histogram: Counts, mantissa: int) -> Counts:
    """Round counts to 1 + `mantissa` significant bits."""
    shifts = np.maximum(np.frexp(histogram)[1] - 1 - mantissa, 0)
    rounded: Counts = ((histogram + (1 << shifts >> 1)) >> shifts) << shifts
    return rounded


def write_counts(writer: BitWriter, rounded: Counts, lowest: int, mantissa: int) -> None:
    """Write the range of symbols, then exponents and mantissas of the rounded counts."""
    writer.varint(zigzag(lowest))
    writer.varint(len(rounded))
    if len(rounded) == 1:
        return
    writer.bits(mantissa, _MANTISSA_BITS)
    writer.levels(np.frexp(rounded)[1])
    for count in rounded.tolist():
        digits = max(count.bit_length() - 1, 0)  # after the leading 1
        width = min(digits, mantissa)
        writer.bits((count >> (digits - width)) & ((1 << width) - 1), width)


def read_counts(reader: BitReader, least: int, most: int) -> tuple[int, Counts]:
    """Read what `write_counts` wrote: the lowest symbol and the counts.

    Raises
    ------
    CorruptFileError
        If symbols are not all from `least` to `most`, or all counts are zero.
    """
    lowest, size = unzigzag(reader.varint()), reader.varint()
    if size == 0 or lowest < least or lowest + size - 1 > most:
        raise CorruptFileError("a probability table exceeds the levels of its quantizer")
    if size == 1:
        return lowest, np.ones(1, np.int64)
    mantissa = reader.bits(_MANTISSA_BITS)
    rounded = []
    for exponent in reader.levels(size, _MAX_EXPONENT):
        width = min(max(exponent - 1, 0), mantissa)
        leading = (1 << width | reader.bits(width)) if exponent else 0
        rounded.append(leading << max(exponent - 1 - width, 0))
    if not any(rounded):
        raise CorruptFileError("a probability table is empty")
    return lowest, np.array(rounded)


def symbol_counts(symbols: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct values of an integer tensor in order, with their counts.

    Examples
    --------
    >>> [part.tolist() for part in symbol_counts(torch.tensor([2, -1, 2]))]
    [[-1, 2], [1, 2]]
    """
    lowest, highest = map(int, symbols.aminmax()) if symbols.numel() else (0, 0)
    # For a wide range of values, bincount would take more memory.
    if not symbols.numel() or highest - lowest > 2 * symbols.numel():
        values, counts = torch.unique(symbols, return_counts=True)
        return values, counts
    counts = torch.bincount((symbols - lowest).flatten())
    present = counts.nonzero().flatten()
    return present + lowest, counts[present]


def entropy_bits(symbols: Tensor) -> float:
    """Return the empirical entropy of a tensor's values in bits per value.

    Examples
    --------
    >>> entropy_bits(torch.tensor([0, 1, 2, 2]))
    1.5
    """
    # H = sum_s p_s log2(1 / p_s)
    counts = symbol_counts(symbols)[1].double()
    shares = counts / counts.sum()
    return float((shares * (1 / shares).log2()).sum())
