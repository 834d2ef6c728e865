"""How the adaptive coder sees a symbol: what is around it, and how large it should be.

Integers in lists or arrays, for plain Python and numba; see `tensorpress.codec.binary_coder`.
"""

from typing import Any

from tensorpress.codec.binary_coder import (
    FILTER,
    LOGARITHMS,
    MODE,
    NEAR,
    POSITION,
    SHARES,
    SLOTS,
    WRITING,
    Ints,
    code_bit,
    code_counted,
    code_mixed,
    code_number,
)

BINS = 24  # 0: is it zero? j: does the magnitude go on beyond j?
LONGEST = 20  # bins coded in unary; what is left of a magnitude follows as a number
LEVELS = 40  # of an expected magnitude, four to the octave
ONE_LEVEL = 24  # the level of an expected magnitude of 1
ONE = 128  # eighths of an octave of a 1 in fixed point, 16 bits after the point
SPREADS, PREDICTIONS = 5, 24  # contexts: of expected magnitudes; of the prediction and its sign
TABLE = 2 * LEVELS * BINS  # counters of a context: for symbols that are shifted, or not
SIGNS = (SPREADS + PREDICTIONS) * TABLE  # where other counters begin
LOW_BITS, RESTS = SIGNS + 512, SIGNS + 528
NAMED = RESTS + 24  # and from here on, those of numbers
INPUTS = 6  # of the mixer
SIGN_SET = 2 * BINS  # the set of mixer weights for signs; one for each bin before
SETS = SIGN_SET + 1
NEIGHBOURS = 8

LARGEST = ONE + 8 * 23  # logarithm of the largest expected magnitude
MOST = 1 << 23  # largest magnitude, so that nothing read from a damaged file leaves 64 bits
LEAST = 256  # smallest expected magnitude, 16 bits after the point
TRUST = 12  # symbols that a mean is worth at its start
LONG, SHORT = 1000, 250  # symbols that means go back: of the tensor and a place; a row, a column


def logarithm(state: Ints, value: int) -> int:
    """Return eight times the base-2 logarithm of a positive integer, rounded."""
    eighths = 0
    while value >= 4096:
        value >>= 3
        eighths += 24
    return int(eighths + state[LOGARITHMS + value])


def level(eighths: int) -> int:
    """Return the level of an expected magnitude, 0 to 39."""
    return min(max((eighths - ONE >> 1) + ONE_LEVEL, 0), LEVELS - 1)


def trit(symbol: int) -> int:
    """Return 1 for a positive symbol, 2 for a negative, 0 for zero."""
    return 1 if symbol > 0 else (2 if symbol < 0 else 0)


def look_around(state: Ints, symbols: Ints, i: int, at: Any, sizes: Any) -> int:
    """Put the symbols around number `i` in `NEAR` and return their weighted magnitude.

    They are those to the left, above, above left, in the channel before and the row before,
    above right, two to the left and two above. The magnitude is times the sum of the weights,
    which is in the lowest 8 bits.
    """
    row, channel, y, x = at
    channels, height, width = sizes
    plane = height * width
    for k in range(NEIGHBOURS):
        state[NEAR + k] = 0
    total, weight = 0, 0
    if x > 0:
        state[NEAR] = symbols[i - 1]
        total, weight = total + 3 * abs(state[NEAR]), weight + 3
        state[NEAR + 6] = symbols[i - 2] if x > 1 else 0
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
    if channel > 0:
        state[NEAR + 3] = symbols[i - plane]
        total, weight = total + 2 * abs(state[NEAR + 3]), weight + 2
        if channel > 1:
            total, weight = total + abs(symbols[i - 2 * plane]), weight + 1
    if row > 0:
        state[NEAR + 4] = symbols[i - channels * plane]
        total, weight = total + 2 * abs(state[NEAR + 4]), weight + 2
        if row > 1:
            total, weight = total + abs(symbols[i - 2 * channels * plane]), weight + 1
    return total << 8 | weight


def predict(state: Ints) -> int:
    """Return the expected symbol, 16 bits after the point."""
    total = 0
    for k in range(NEIGHBOURS):
        state[NEAR + k] = min(max(state[NEAR + k], -32767), 32767)
        total += state[FILTER + k] * state[NEAR + k]
    return total


def correct(state: Ints, error: int, mean: int) -> None:
    """Move the filter against its error: normalized least mean squares."""
    power = ((mean >> 8) * (mean >> 8) >> 4) + (1 << 12)
    for k in range(NEIGHBOURS):
        if state[NEAR + k] != 0:
            moved = state[FILTER + k] + error * state[NEAR + k] * 8 // power
            state[FILTER + k] = min(max(moved, -131072), 131072)


def code_sign(state: Ints, buffer: Ints, prediction: int, place: int, bit: int) -> int:
    """Code the sign of a symbol; `prediction` is its level and its sign."""
    first, second = trit(state[NEAR]), trit(state[NEAR + 1])
    state[SLOTS] = SIGNS + prediction
    state[SLOTS + 1] = SIGNS + 64 + 9 * first + 3 * second + trit(state[NEAR + 2])
    state[SLOTS + 2] = (
        SIGNS
        + 128
        + 27 * trit(state[NEAR + 6])
        + 9 * trit(state[NEAR + 7])
        + 3 * trit(state[NEAR + 5])
        + first
    )
    state[SLOTS + 3] = SIGNS + 256 + 12 * prediction + place
    return code_mixed(state, buffer, SIGN_SET * INPUTS, 4, bit)


def code_magnitude(state: Ints, buffer: Ints, levels: Any, kind: int, shift: int, rest: int) -> int:
    """Code a magnitude less one: what is above `shift` bits in unary, then those bits."""
    half = LEVELS * BINS if shift > 0 else 0
    weights = BINS if shift > 0 else 0
    above, j = rest >> shift, 1
    while j <= LONGEST:
        for k in range(SPREADS):
            state[SLOTS + k] = k * TABLE + half + levels[k] * BINS + j
        state[SLOTS + SPREADS] = kind * TABLE + half + levels[0] * BINS + j
        on = code_mixed(state, buffer, (weights + j) * INPUTS, INPUTS, 1 if above >= j else 0)
        if not on:
            break
        j += 1
    found = j - 1
    if found == LONGEST:
        found += code_number(state, buffer, RESTS, above - LONGEST)
    group = min(found, 3) * 4
    for k in range(shift):
        bit = rest >> shift - 1 - k & 1
        if k == 0:
            bit = code_counted(state, buffer, LOW_BITS + group, bit)
            group += 1 + bit
        elif k == 1:
            bit = code_counted(state, buffer, LOW_BITS + group, bit)
        else:
            bit = code_bit(state, buffer, 32768, bit)
        found = found << 1 | bit
    return min(found, MOST - 1)


def code_symbol(
    state: Ints,
    buffer: Ints,
    spreads: Any,
    prediction: int,
    place: int,
    symbol: int,
) -> int:
    """Code a symbol: whether it is zero, its sign, its magnitude.

    `spreads` are logarithms of its expected magnitude, the best first, from what is around it,
    from its row, from its column, and the mean of the first two.
    """
    shift = max(spreads[0] - ONE - 4 >> 3, 0) if spreads[0] >= ONE + 12 else 0
    half = LEVELS * BINS if shift > 0 else 0
    relative = logarithm(state, abs(prediction) + 1) - spreads[0]
    strength = min(max(relative + 32 >> 3, 0), 7) if prediction != 0 else 0
    side = 1 if prediction > 0 else 0
    for k in range(SPREADS):
        state[SLOTS + k] = k * TABLE + half + level(spreads[k]) * BINS
    state[SLOTS + SPREADS] = (SPREADS + 3 * strength) * TABLE + half + level(spreads[0]) * BINS
    first = BINS * INPUTS if shift > 0 else 0
    some = code_mixed(state, buffer, first, INPUTS, 1 if symbol != 0 else 0)
    if not some:
        return 0
    positive = code_sign(state, buffer, 2 * strength + side, place, 1 if symbol > 0 else 0)
    agrees = (1 if positive == side else 2) if strength > 0 else 0
    down = 8 * shift
    levels = (
        level(spreads[0] - down),
        level(spreads[1] - down),
        level(spreads[2] - down),
        level(spreads[3] - down),
        level(spreads[4] - down),
    )
    kind = SPREADS + 3 * strength + agrees
    magnitude = 1 + code_magnitude(state, buffer, levels, kind, shift, abs(symbol) - 1)
    return magnitude if positive else -magnitude


def follow(state: Ints, means: Ints, at: int, magnitude: int, longest: int) -> None:
    """Move a mean magnitude towards the next one; its age is behind it."""
    mean, age = means[at], means[at + 1]
    moved = mean + ((magnitude - mean) * state[SHARES + 1 + age] >> 16)
    means[at] = max(moved, LEAST)
    means[at + 1] = min(age + 1, longest)


def code_symbols(state: Ints, buffer: Ints, symbols: Ints, sizes: Any, means: Ints) -> bool:
    """Code the symbols of a tensor of rows, channels, height and width; False if bytes ran out.

    `means` holds pairs of a mean magnitude and the symbols it is worth: of the tensor, of the
    row, of each column and of each place in the plane. All begin with the tensor's.
    """
    rows, channels, height, width = sizes
    plane = (channels, height, width)
    i = 0
    for row in range(rows):
        means[2], means[3] = means[0], TRUST
        for channel in range(channels):
            column = 4 + 2 * channel
            if row == 0:
                means[column], means[column + 1] = means[0], TRUST
            for y in range(height):
                for x in range(width):
                    at = 4 + 2 * (channels + y * width + x)
                    if row == 0 and channel == 0:
                        means[at], means[at + 1] = means[0], TRUST
                    around = look_around(state, symbols, i, (row, channel, y, x), plane)
                    prediction = predict(state)
                    near = ((around >> 8 << 16) + 2 * means[0]) // ((around & 255) + 2)
                    local = logarithm(state, near)
                    lines = logarithm(state, means[2]), logarithm(state, means[column])
                    best = lines[0] + lines[1] + logarithm(state, means[at])
                    best = min(max(best - 2 * logarithm(state, means[0]), 0), LARGEST)
                    spreads = (best, local, lines[0], lines[1], best + local >> 1)
                    place = min(y * width + x, 11)
                    found = code_symbol(state, buffer, spreads, prediction, place, symbols[i])
                    symbols[i] = found
                    magnitude = abs(found) << 16
                    follow(state, means, 0, magnitude, LONG)
                    follow(state, means, 2, magnitude, SHORT)
                    follow(state, means, column, magnitude, SHORT)
                    follow(state, means, at, magnitude, LONG)
                    correct(state, (found << 16) - prediction, means[0])
                    i += 1
        if state[MODE] != WRITING and state[POSITION] > len(buffer) + 4:
            return False
    return True
