"""The context model of the adaptive coder: the bits of a symbol, and the prediction of each bit.

A symbol is coded as a sequence of bits: whether it is zero, its sign, and its magnitude in unary.
Counters predict every bit, each chosen by another context: the expected magnitude of the symbol,
estimated from its neighbours, its row and its column, and a linear prediction of its value. All
functions work on integers in lists or arrays; see `tensorpress.codec.binary_coder`. "Logarithm"
means 8 log2 of a number with 16 bits after the point, so 128 is the logarithm of 1.
"""

from typing import Any

from tensorpress.codec.binary_coder import (
    FILTER,
    HALF,
    LOGARITHMS,
    MODE,
    NEAR,
    POSITION,
    RECIPROCALS,
    SLOTS,
    WRITING,
    Ints,
    code_bit,
    code_bit_by_counter,
    code_bit_by_mixer,
    code_number,
)

BINS = 24  # bits with counters; 0: is the symbol zero? j: is its magnitude above j?
MAX_UNARY = 20  # bits of a magnitude in unary; the rest of a larger one follows as a number
LEVELS = 40  # classes of expected magnitudes, four to the octave
LEVEL_OF_ONE = 24  # the class of an expected magnitude of 1
LOG_OF_ONE = 128
ESTIMATES, PREDICTIONS = 5, 24  # contexts by expected magnitude, and by the prediction
TABLE_SIZE = 2 * LEVELS * BINS  # counters of a context: for symbols without and with low bits
SIGN_START = (ESTIMATES + PREDICTIONS) * TABLE_SIZE  # first counter of signs, and so on
LOW_BIT_START, ESCAPE_START = SIGN_START + 512, SIGN_START + 528
NUMBER_START = ESCAPE_START + 24
MIXER_INPUTS = 6
SIGN_WEIGHTS = 2 * BINS  # number of the mixer's weights for signs; those before are for bins
WEIGHT_SETS = SIGN_WEIGHTS + 1
NEIGHBOURS = 8

MAX_LOG = LOG_OF_ONE + 8 * 23  # of an expected magnitude
MAX_INTEGER = (1 << 63) - 1
MAX_MAGNITUDE = 1 << 23  # keeps numbers from a damaged file within 64 bits
MIN_MEAN = 256  # smallest expected magnitude, 16 bits after the point
INITIAL_AGE = 12  # number of symbols for which a mean's initial value counts
LONG_MEMORY, SHORT_MEMORY = 1000, 250  # most symbols over which means average


def logarithm(state: Ints, value: int) -> int:
    """Return eight times the base-2 logarithm of a positive integer, rounded."""
    eighths = 0
    while value >= 4096:
        value >>= 3
        eighths += 24
    return int(eighths + state[LOGARITHMS + value])


def magnitude_level(eighths: int) -> int:
    """Return the class, 0 to 39, of an expected magnitude, from its logarithm."""
    return min(max((eighths - LOG_OF_ONE >> 1) + LEVEL_OF_ONE, 0), LEVELS - 1)


def sign_class(symbol: int) -> int:
    """Return 1 for a positive symbol, 2 for a negative one, 0 for zero."""
    return 1 if symbol > 0 else (2 if symbol < 0 else 0)


def gather_neighbours(state: Ints, symbols: Ints, i: int, index: Any, sizes: Any) -> int:
    """Copy the eight neighbours of symbol `i` to `NEAR`; return their weighted magnitude.

    They are the symbols to the left, above, above left, in the previous channel, in the previous
    row, above right, two to the left and two above. The result packs the weighted sum of magnitudes
    and, in the lowest 8 bits, the sum of the weights.
    """
    row, channel, y, x = index
    channels, height, width = sizes
    plane = height * width
    for k in range(NEIGHBOURS):
        state[NEAR + k] = 0
    total, weight = 0, 0
    # In the row of the plane: left (weight 3), two to the left (0).
    if x > 0:
        state[NEAR] = symbols[i - 1]
        total, weight = total + 3 * abs(state[NEAR]), weight + 3
        state[NEAR + 6] = symbols[i - 2] if x > 1 else 0
    # In the rows above: above (3), two above (0), above left (1), above right (1).
    if y > 0:
        state[NEAR + 1] = symbols[i - width]
        total, weight = total + 3 * abs(state[NEAR + 1]), weight + 3
        state[NEAR + 7] = symbols[i - 2 * width] if y > 1 else 0
        if x > 0:
            state[NEAR + 2] = symbols[i - width - 1]
            total, weight = total + abs(state[NEAR + 2]), weight + 1
        if x < width - 1:
            state[NEAR + 5] = symbols[i - width + 1]
            total, weight = total + abs(state[NEAR + 5]), weight + 1
    # At the same place: one channel before (2), two channels before (1).
    if channel > 0:
        state[NEAR + 3] = symbols[i - plane]
        total, weight = total + 2 * abs(state[NEAR + 3]), weight + 2
        if channel > 1:
            total, weight = total + abs(symbols[i - 2 * plane]), weight + 1
    # At the same place and channel: one row before (2), two rows before (1).
    if row > 0:
        state[NEAR + 4] = symbols[i - channels * plane]
        total, weight = total + 2 * abs(state[NEAR + 4]), weight + 2
        if row > 1:
            total, weight = total + abs(symbols[i - 2 * channels * plane]), weight + 1
    return total << 8 | weight


def predict(state: Ints) -> int:
    """Return the expected symbol, sum_k f_k s_k over neighbours s, 16 bits after the point."""
    total = 0
    for k in range(NEIGHBOURS):
        state[NEAR + k] = min(max(state[NEAR + k], -32767), 32767)
        total += state[FILTER + k] * state[NEAR + k]
    return total


def update_filter(state: Ints, error: int, mean: int) -> None:
    """Adapt the filter f by normalized least mean squares.

    With e the prediction's error, s the neighbours and m the mean magnitude of the tensor:
    f_k += e s_k / (512 (m² + 1)).
    """
    power = ((mean >> 8) * (mean >> 8) >> 4) + (1 << 12)  # 2^12 (m^2 + 1)
    for k in range(NEIGHBOURS):
        if state[NEAR + k] != 0:
            weight = state[FILTER + k] + error * state[NEAR + k] * 8 // power
            state[FILTER + k] = min(max(weight, -131072), 131072)


def code_sign(state: Ints, buffer: Ints, prediction: int, place: int, bit: int) -> int:
    """Code the sign of a symbol, 1 for positive.

    `prediction` is twice the strength of the predicted value, 0 to 7, plus its sign.
    """
    # Four contexts: the prediction; signs of near neighbours; of others; prediction and place.
    left, above = sign_class(state[NEAR]), sign_class(state[NEAR + 1])
    state[SLOTS] = SIGN_START + prediction
    state[SLOTS + 1] = SIGN_START + 64 + 9 * left + 3 * above + sign_class(state[NEAR + 2])
    state[SLOTS + 2] = (
        SIGN_START
        + 128
        + 27 * sign_class(state[NEAR + 6])
        + 9 * sign_class(state[NEAR + 7])
        + 3 * sign_class(state[NEAR + 5])
        + left
    )
    state[SLOTS + 3] = SIGN_START + 256 + 12 * prediction + place
    return code_bit_by_mixer(state, buffer, SIGN_WEIGHTS * MIXER_INPUTS, 4, bit)


def code_magnitude(state: Ints, buffer: Ints, levels: Any, kind: int, shift: int, rest: int) -> int:
    """Code a magnitude less one: its high bits in unary, then its lowest `shift` bits."""
    half = LEVELS * BINS if shift > 0 else 0
    weights = BINS if shift > 0 else 0
    # Unary: bit j says whether the high bits are at least j, up to MAX_UNARY.
    high, j = rest >> shift, 1
    while j <= MAX_UNARY:
        for k in range(ESTIMATES):
            state[SLOTS + k] = k * TABLE_SIZE + half + levels[k] * BINS + j
        state[SLOTS + ESTIMATES] = kind * TABLE_SIZE + half + levels[0] * BINS + j
        longer = 1 if high >= j else 0
        mixer = (weights + j) * MIXER_INPUTS
        if not code_bit_by_mixer(state, buffer, mixer, MIXER_INPUTS, longer):
            break
        j += 1
    magnitude = j - 1
    # Escape: the rest of a larger magnitude.
    if magnitude == MAX_UNARY:
        magnitude += code_number(state, buffer, ESCAPE_START, high - MAX_UNARY)
    # Low bits: the first two by counters, which depend on the high bits; the rest at 1/2.
    group = min(magnitude, 3) * 4
    for k in range(shift):
        bit = rest >> shift - 1 - k & 1
        if k == 0:
            bit = code_bit_by_counter(state, buffer, LOW_BIT_START + group, bit)
            group += 1 + bit
        elif k == 1:
            bit = code_bit_by_counter(state, buffer, LOW_BIT_START + group, bit)
        else:
            bit = code_bit(state, buffer, HALF, bit)
        magnitude = magnitude << 1 | bit
    return min(magnitude, MAX_MAGNITUDE - 1)


def code_symbol(
    state: Ints,
    buffer: Ints,
    estimates: Any,
    prediction: int,
    place: int,
    symbol: int,
) -> int:
    """Code a symbol: whether it is zero, its sign, its magnitude.

    `estimates` are logarithms of its expected magnitude E, the best first; `prediction` is its
    expected value, 16 bits after the point; `place` is its place in the plane, at most 11.
    """
    # Bits below the expected magnitude are nearly random: floor(log2 E - 1/2) are low bits.
    best = estimates[0]
    shift = max(best - LOG_OF_ONE - 4 >> 3, 0)
    half = LEVELS * BINS if shift > 0 else 0
    # Strength of the prediction p: octaves of |p| / E, from below 1/8 (0) to 8 and more (7).
    relative = logarithm(state, abs(prediction) + 1) - best
    strength = min(max(relative + 32 >> 3, 0), 7) if prediction != 0 else 0
    side = 1 if prediction > 0 else 0
    # Is it zero? Five contexts by the estimates, one by the prediction's strength.
    for k in range(ESTIMATES):
        state[SLOTS + k] = k * TABLE_SIZE + half + magnitude_level(estimates[k]) * BINS
    state[SLOTS + ESTIMATES] = (
        (ESTIMATES + 3 * strength) * TABLE_SIZE + half + magnitude_level(best) * BINS
    )
    mixer = BINS * MIXER_INPUTS if shift > 0 else 0
    nonzero = 1 if symbol != 0 else 0
    if not code_bit_by_mixer(state, buffer, mixer, MIXER_INPUTS, nonzero):
        return 0
    positive = code_sign(state, buffer, 2 * strength + side, place, 1 if symbol > 0 else 0)
    # The magnitude: contexts by the estimates without low bits, and by the sign's agreement.
    agreement = (1 if positive == side else 2) if strength > 0 else 0
    low = 8 * shift
    levels = (
        magnitude_level(estimates[0] - low),
        magnitude_level(estimates[1] - low),
        magnitude_level(estimates[2] - low),
        magnitude_level(estimates[3] - low),
        magnitude_level(estimates[4] - low),
    )
    kind = ESTIMATES + 3 * strength + agreement
    magnitude = 1 + code_magnitude(state, buffer, levels, kind, shift, abs(symbol) - 1)
    return magnitude if positive else -magnitude


def update_mean(state: Ints, means: Ints, at: int, magnitude: int, memory: int) -> None:
    """Move a mean m of n symbols by (magnitude - m) / (n + 1); n grows up to `memory`."""
    mean, age = means[at], means[at + 1]
    mean += (magnitude - mean) * state[RECIPROCALS + 1 + age] >> 16
    means[at] = max(mean, MIN_MEAN)
    means[at + 1] = min(age + 1, memory)


def code_symbols(state: Ints, buffer: Ints, symbols: Ints, sizes: Any, means: Ints) -> bool:
    """Code the symbols of a tensor of rows, channels, height and width; False if bytes run out.

    `means` has pairs of a mean magnitude and the number of symbols that it averages: of the tensor,
    the row, each column and each place in the plane. All start as the tensor's.
    """
    rows, channels, height, width = sizes
    plane = (channels, height, width)
    end = len(buffer) + 4 if state[MODE] != WRITING else MAX_INTEGER
    i = 0
    for row in range(rows):
        means[2], means[3] = means[0], INITIAL_AGE
        for channel in range(channels):
            column = 4 + 2 * channel
            if row == 0:
                means[column], means[column + 1] = means[0], INITIAL_AGE
            for y in range(height):
                for x in range(width):
                    at = 4 + 2 * (channels + y * width + x)
                    if row == 0 and channel == 0:
                        means[at], means[at + 1] = means[0], INITIAL_AGE
                    around = gather_neighbours(state, symbols, i, (row, channel, y, x), plane)
                    prediction = predict(state)
                    # By neighbours, with the tensor's mean of weight 2: (sum w |s| + 2 m) / (W + 2)
                    near = ((around >> 8 << 16) + 2 * means[0]) // ((around & 255) + 2)
                    local = logarithm(state, near)
                    # By the product of a row's, a column's and a place's factor:
                    # log m_row + log m_column + log m_place - 2 log m
                    by_row, by_column = logarithm(state, means[2]), logarithm(state, means[column])
                    best = by_row + by_column + logarithm(state, means[at])
                    best = min(max(best - 2 * logarithm(state, means[0]), 0), MAX_LOG)
                    estimates = (best, local, by_row, by_column, best + local >> 1)
                    place = min(y * width + x, 11)
                    symbol = code_symbol(state, buffer, estimates, prediction, place, symbols[i])
                    symbols[i] = symbol
                    # Learn from the symbol.
                    magnitude = abs(symbol) << 16
                    update_mean(state, means, 0, magnitude, LONG_MEMORY)
                    update_mean(state, means, 2, magnitude, SHORT_MEMORY)
                    update_mean(state, means, column, magnitude, SHORT_MEMORY)
                    update_mean(state, means, at, magnitude, LONG_MEMORY)
                    update_filter(state, (symbol << 16) - prediction, means[0])
                    i += 1
                    if state[POSITION] > end:
                        return False
    return True
