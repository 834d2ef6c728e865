"""Binary arithmetic coding with adaptive probabilities, mixed in the logistic domain.

All functions work on integers in lists or arrays, so that plain Python and numba run the same code.
``state[MODE]`` sets the direction: functions write the bit they are passed, or return the bit they
read. Nothing here allocates memory, and no integer exceeds 64 bits.
"""

from typing import Any

Ints = Any  # a list of int or an array of int64: indexed by numba and plain Python alike

# Layout of `state`: the coder's interval, work space, lookup tables, mixer weights, counters.
LOW, HIGH, VALUE, POSITION, MODE = range(5)
SLOTS, STRETCHED, NEAR, FILTER = 8, 16, 24, 32
STRETCH, SQUASH, LOGARITHMS, RECIPROCALS = (64 + 4096 * k for k in range(4))
MIXER = RECIPROCALS + 1024
COUNTERS = MIXER + 512  # each counter is a probability times 2**16 and a number of bits seen

WRITING = 1  # the value of `MODE` in writing; 0 in reading
MAX_COUNT = 255  # most bits over which a counter's probability averages
MIXER_RATE = 4
MAX_NUMBER_BITS = 24  # binary digits of a number after its first
HALF = 1 << 15  # probability 1/2


def code_bit(state: Ints, buffer: Ints, p: int, bit: int) -> int:
    """Code a bit that is 1 with probability p / 2**16, 0 < p < 2**16."""
    # The bit 1 takes the lower part [low, m] of the interval, m = low + (high - low) p / 2^16.
    low, high = state[LOW], state[HIGH]
    middle = low + ((high - low) * p >> 16)
    if state[MODE] != WRITING:
        bit = 1 if state[VALUE] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    # While both ends have the same first byte, shift it out, and shift one byte in.
    while (low ^ high) >> 24 == 0:
        position = state[POSITION]
        if state[MODE] == WRITING:
            if position < len(buffer):
                buffer[position] = high >> 24
        else:
            next_byte = buffer[position] if position < len(buffer) else 0
            state[VALUE] = (state[VALUE] << 8 & 0xFFFFFFFF) | next_byte
        state[POSITION] = position + 1
        low = low << 8 & 0xFFFFFFFF
        high = (high << 8 & 0xFFFFFFFF) | 255
    state[LOW], state[HIGH] = low, high
    return bit


def update_counter(state: Ints, i: int, bit: int) -> None:
    """Move the probability p of counter `i`, which has seen n bits, by (bit - p) / (n + 1)."""
    at = COUNTERS + 2 * i
    p, count = state[at], state[at + 1]
    rate = state[RECIPROCALS + 1 + count]  # 2^16 / (n + 1)
    state[at] = p + ((65535 - p) * rate >> 16) if bit else p - (p * rate >> 16)
    if count < MAX_COUNT:
        state[at + 1] = count + 1


def code_bit_by_counter(state: Ints, buffer: Ints, i: int, bit: int) -> int:
    """Code a bit with the probability of counter `i`, and update the counter."""
    p = min(max(state[COUNTERS + 2 * i], 64), 65536 - 64)
    bit = code_bit(state, buffer, p, bit)
    update_counter(state, i, bit)
    return bit


def code_bit_by_mixer(state: Ints, buffer: Ints, weights: int, inputs: int, bit: int) -> int:
    """Code a bit with a mix of the first `inputs` counters whose numbers are in `SLOTS`.

    `weights` is the start of the mixer's weights. Weights and counters are updated.
    """
    # p = squash(sum_k w_k stretch(p_k)), with stretch(p) = ln(p / (1 - p)) and squash its inverse.
    dot = 0
    for k in range(inputs):
        stretched = state[STRETCH + (state[COUNTERS + 2 * state[SLOTS + k]] >> 4)]
        state[STRETCHED + k] = stretched
        dot += state[MIXER + weights + k] * stretched
    p = state[SQUASH + min(max((dot >> 16) + 2048, 0), 4095)]
    bit = code_bit(state, buffer, p, bit)
    # Gradient descent on the bit's code length: w_k += rate * (bit - p) * stretch(p_k).
    error = ((bit << 16) - p) * MIXER_RATE
    for k in range(inputs):
        state[MIXER + weights + k] += state[STRETCHED + k] * error + (1 << 17) >> 18
        update_counter(state, state[SLOTS + k], bit)
    return bit


def code_number(state: Ints, buffer: Ints, first: int, number: int) -> int:
    """Code a number n from 0 to 2**24 - 2 in an Exp-Golomb code.

    The 24 counters from number `first` code the number of digits of n + 1.
    """
    # In unary: the number of binary digits of n + 1 after its leading 1.
    width = 0
    while width < MAX_NUMBER_BITS:
        longer = 1 if number + 1 >> width + 1 else 0
        if not code_bit_by_counter(state, buffer, first + width, longer):
            break
        width += 1
    # These digits, highest first, each with probability 1/2.
    digits = 1
    for k in range(width):
        digits = digits << 1 | code_bit(state, buffer, HALF, number + 1 >> width - 1 - k & 1)
    return digits - 1
