"""What the adaptive coder starts from and looks up, computed in integers alone."""

from functools import cache
from math import isqrt

from tensorpress.codec.binary_coder import COUNTERS, HIGH, STRETCH
from tensorpress.codec.context_model import (
    BINS,
    INPUTS,
    LEVELS,
    NAMED,
    ONE_LEVEL,
    PREDICTIONS,
    SETS,
    SIGN_SET,
    SPREADS,
)

NUMBERS, NUMBER_COUNTERS = 64, 24
"""Kinds of numbers that a coder tells apart, and counters of each."""

_OCTAVE_PARTS = (65536, 77936, 92682, 110218)  # 2**(k / 4), 16 bits after the point
_CONFIDENCE = 16  # what a counter's first probability counts for, in bits seen
_LITTLE_CONFIDENCE = 1
_LOGISTIC_BITS = 60
_DECAY = 1148426689630428644  # exp(-1 / 256), 60 bits after the point


@cache
def tables() -> tuple[list[int], ...]:
    """Return four tables: stretch, squash, logarithms and shares.

    ``squash[2048 + x]`` is 2**16 / (1 + exp(-x / 256)), from 32 to 2**16 - 32; ``stretch[p]`` is
    the least x from -2047 to 2047 for which that is no less than 16 p + 8; ``logarithms[n]`` is
    8 log2(n), rounded; ``shares[n]`` is 2**16 / n, rounded down.
    """
    wide = _LOGISTIC_BITS - 16
    squash = [min(max(_logistic(x) >> wide, 32), 65536 - 32) for x in range(-2048, 2048)]
    stretch, x = [], -2047
    for p in range(4096):
        while x < 2047 and _logistic(x) < (2 * p + 1) << _LOGISTIC_BITS - 13:
            x += 1
        stretch.append(x)
    logarithms = [0, *(_eighths(n) for n in range(1, 4096))]
    shares = [65536, *(65536 // n for n in range(1, 1024))]
    return stretch, squash, logarithms, shares


@cache
def initial_state() -> tuple[int, ...]:
    """Return the state of a coder that has coded nothing: work space, tables, mixer, counters."""
    mixer = [65536 * 17 // 100] * (SETS * INPUTS)
    mixer[SIGN_SET * INPUTS :] = [65536 * 2 // 5] * INPUTS
    probabilities = _first_table() * (SPREADS + PREDICTIONS)
    probabilities += [32768] * (NAMED + NUMBERS * NUMBER_COUNTERS - len(probabilities))
    state = [0] * STRETCH
    state[HIGH] = 0xFFFFFFFF
    for table in (*tables(), mixer):
        state += table
    state += [0] * (COUNTERS - len(state))
    for i, p in enumerate(probabilities):
        state += p, _CONFIDENCE if i < NAMED else _LITTLE_CONFIDENCE
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
    one, power = 1 << _LOGISTIC_BITS, _powers()[abs(x)]
    small = (power << _LOGISTIC_BITS) // (one + power)
    return one - small if x >= 0 else small


def _eighths(n: int) -> int:
    """Return 8 log2(n), rounded: the bits of n**16, halved."""
    return (n**16).bit_length() // 2


@cache
def _first_table() -> list[int]:
    """Return the probabilities of a context for symbols of two-sided geometric distribution.

    With E the mean magnitude and θ = (√(1 + E²) - 1) / E, a symbol is not zero with probability
    2θ / (1 + θ) and goes on with θ. Of shifted symbols, what is above the shift goes on with
    (2E - 1) / (2E + 1), about exp(-1 / E).
    """
    means = []
    for level in range(LEVELS):
        octave, part = divmod(level - ONE_LEVEL, len(_OCTAVE_PARTS))
        means.append(_OCTAVE_PARTS[part] << 24 + octave)  # 40 bits after the point
    one = 1 << 40
    ratios = [((isqrt(one**2 + mean**2) - one) << 16) // mean for mean in means]
    some = [(2 * ratio << 16) // (65536 + ratio) for ratio in ratios]
    shifted = [max((2 * mean - one << 16) // (2 * mean + one), 0) for mean in means]
    table = []
    for on in (ratios, shifted):
        for level in range(LEVELS):
            table += [some[level], *[on[level]] * (BINS - 1)]
    return [min(max(p, 64), 65536 - 64) for p in table]
