"""Lookup tables and initial state of the adaptive coder, computed with integers only."""

from functools import cache
from math import isqrt

from tensorpress.codec.binary_coder import COUNTERS, HALF, HIGH, STRETCH
from tensorpress.codec.context_model import (
    BINS,
    ESTIMATES,
    LEVEL_OF_ONE,
    LEVELS,
    MIXER_INPUTS,
    NUMBER_START,
    PREDICTIONS,
    SIGN_WEIGHTS,
    WEIGHT_SETS,
)

NUMBERS, NUMBER_COUNTERS = 64, 24
"""Kinds of numbers that a coder distinguishes, and counters of each."""

_OCTAVE_PARTS = (65536, 77936, 92682, 110218)  # 2**(k / 4), 16 bits after the point
_SYMBOL_COUNT = 16  # number of bits for which the initial probability of a counter counts
_NUMBER_COUNT = 1
_LOGISTIC_BITS = 60
_DECAY = 1148426689630428644  # exp(-1 / 256), 60 bits after the point


@cache
def tables() -> tuple[list[int], ...]:
    """Return four tables: stretch, squash, logarithms and reciprocals.

    ``squash[2048 + x]`` is 2**16 / (1 + exp(-x / 256)), from 32 to 2**16 - 32; ``stretch[p]`` is
    the least x from -2047 to 2047 for which that is no less than 16 p + 8; ``logarithms[n]`` is
    8 log2(n), rounded; ``reciprocals[n]`` is 2**16 / n, rounded down.
    """
    extra_bits = _LOGISTIC_BITS - 16
    squash = [min(max(_logistic(x) >> extra_bits, 32), 65536 - 32) for x in range(-2048, 2048)]
    # The inverse of the logistic function at (p + 1/2) / 4096: x only rises with p.
    stretch, x = [], -2047
    for p in range(4096):
        while x < 2047 and _logistic(x) < (2 * p + 1) << _LOGISTIC_BITS - 13:
            x += 1
        stretch.append(x)
    # 8 log2(n), rounded: half the number of binary digits of n^16.
    logarithms = [0, *((n**16).bit_length() // 2 for n in range(1, 4096))]
    reciprocals = [65536, *(65536 // n for n in range(1, 1024))]
    return stretch, squash, logarithms, reciprocals


@cache
def initial_state() -> tuple[int, ...]:
    """Return the initial state of a coder: work space, tables, mixer, counters."""
    # Mixer weights, 16 bits after the point: 0.17 for each of six inputs, 0.4 for four of signs.
    mixer = [65536 * 17 // 100] * (WEIGHT_SETS * MIXER_INPUTS)
    mixer[SIGN_WEIGHTS * MIXER_INPUTS :] = [65536 * 2 // 5] * MIXER_INPUTS
    # Probabilities of the geometric distribution for symbols, 1/2 for everything else.
    probabilities = _initial_table() * (ESTIMATES + PREDICTIONS)
    probabilities += [HALF] * (NUMBER_START + NUMBERS * NUMBER_COUNTERS - len(probabilities))
    state = [0] * STRETCH
    state[HIGH] = 0xFFFFFFFF
    for table in (*tables(), mixer):
        state += table
    state += [0] * (COUNTERS - len(state))
    for i, p in enumerate(probabilities):
        state += p, _SYMBOL_COUNT if i < NUMBER_START else _NUMBER_COUNT
    return tuple(state)


@cache
def _powers() -> list[int]:
    """Return exp(-x / 256) for x from 0 to 2048, 60 bits after the point."""
    powers = [1 << _LOGISTIC_BITS]
    for _ in range(2048):
        powers.append(powers[-1] * _DECAY >> _LOGISTIC_BITS)
    return powers


def _logistic(x: int) -> int:
    """Return 1 / (1 + exp(-x / 256)), 60 bits after the point."""
    # exp(-|x|) / (1 + exp(-|x|)) for negative x, and 1 minus that for positive x.
    one, power = 1 << _LOGISTIC_BITS, _powers()[abs(x)]
    small = (power << _LOGISTIC_BITS) // (one + power)
    return one - small if x >= 0 else small


@cache
def _initial_table() -> list[int]:
    """Return the probabilities of a context for symbols of two-sided geometric distribution.

    With E the mean magnitude and θ = (√(1 + E²) - 1) / E, a symbol is not zero with probability
    2θ / (1 + θ), and each further unary bit is 1 with probability θ. Where symbols have low bits,
    the unary bits of the high bits are 1 with probability (2E - 1) / (2E + 1), about exp(-1 / E).
    """
    # E of each level: 2^((level - level of 1) / 4), 40 bits after the point.
    means = []
    for level in range(LEVELS):
        octave, part = divmod(level - LEVEL_OF_ONE, len(_OCTAVE_PARTS))
        means.append(_OCTAVE_PARTS[part] << 24 + octave)
    one = 1 << 40
    # Probabilities, 16 bits after the point: θ; 2θ / (1 + θ); (2E - 1) / (2E + 1).
    ratios = [((isqrt(one**2 + mean**2) - one) << 16) // mean for mean in means]
    nonzero = [(2 * ratio << 16) // (65536 + ratio) for ratio in ratios]
    high_ratios = [max((2 * mean - one << 16) // (2 * mean + one), 0) for mean in means]
    table = []
    for longer in (ratios, high_ratios):
        for level in range(LEVELS):
            table += [nonzero[level], *[longer[level]] * (BINS - 1)]
    return [min(max(p, 64), 65536 - 64) for p in table]
