"""Binary arithmetic coding under adaptive probabilities, mixed in the logistic domain.

All is integers in lists or arrays, for plain Python and numba. Every function codes in both
directions: it takes the bit to write or returns the one it reads, as ``state[MODE]`` says.
Nothing here allocates, and nothing leaves 64 bits.
"""

from typing import Any

Ints = Any  # a list of int or an array of int64: indexed by numba and plain Python alike

# Where things are in `state`.
LOW, HIGH, VALUE, POSITION, MODE = range(5)
SLOTS, STRETCHED, NEAR, FILTER = 8, 16, 24, 32
STRETCH, SQUASH, LOGARITHMS, SHARES = (64 + 4096 * k for k in range(4))
MIXER = SHARES + 1024
COUNTERS = MIXER + 512  # a probability and a count each

WRITING = 1  # in `MODE`
LIMIT = 255  # what a counter's memory grows to
RATE = 4  # of the mixer
LONGEST_NUMBER = 24  # bits after the first


def code_bit(state: Ints, buffer: Ints, p: int, bit: int) -> int:
    """Code a bit that is 1 with probability p / 2**16, 0 < p < 2**16."""
    low, high = state[LOW], state[HIGH]
    middle = low + ((high - low) * p >> 16)
    if state[MODE] != WRITING:
        bit = 1 if state[VALUE] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) >> 24 == 0:  # the first byte is settled
        position = state[POSITION]
        if state[MODE] == WRITING:
            if position < len(buffer):
                buffer[position] = high >> 24
        else:
            following = buffer[position] if position < len(buffer) else 0
            state[VALUE] = (state[VALUE] << 8 & 0xFFFFFFFF) | following
        state[POSITION] = position + 1
        low = low << 8 & 0xFFFFFFFF
        high = (high << 8 & 0xFFFFFFFF) | 255
    state[LOW], state[HIGH] = low, high
    return bit


def learn(state: Ints, i: int, bit: int) -> None:
    """Move a counter towards a bit, by one part in as many as it has seen."""
    at = COUNTERS + 2 * i
    p, count = state[at], state[at + 1]
    rate = state[SHARES + 1 + count]
    state[at] = p + ((65535 - p) * rate >> 16) if bit else p - (p * rate >> 16)
    if count < LIMIT:
        state[at + 1] = count + 1


def code_counted(state: Ints, buffer: Ints, i: int, bit: int) -> int:
    """Code a bit under one counter."""
    p = min(max(state[COUNTERS + 2 * i], 64), 65536 - 64)
    bit = code_bit(state, buffer, p, bit)
    learn(state, i, bit)
    return bit


def code_mixed(state: Ints, buffer: Ints, weights: int, inputs: int, bit: int) -> int:
    """Code a bit under the counters in `SLOTS`, mixed in the logistic domain."""
    dot = 0
    for k in range(inputs):
        stretched = state[STRETCH + (state[COUNTERS + 2 * state[SLOTS + k]] >> 4)]
        state[STRETCHED + k] = stretched
        dot += state[MIXER + weights + k] * stretched
    p = state[SQUASH + min(max((dot >> 16) + 2048, 0), 4095)]
    bit = code_bit(state, buffer, p, bit)
    error = ((bit << 16) - p) * RATE
    for k in range(inputs):
        state[MIXER + weights + k] += state[STRETCHED + k] * error + (1 << 17) >> 18
        learn(state, state[SLOTS + k], bit)
    return bit


def code_number(state: Ints, buffer: Ints, first: int, number: int) -> int:
    """Code a number from 0 to 2**24 - 2, in the Exp-Golomb way with counters for its length."""
    width = 0
    while width < LONGEST_NUMBER:
        longer = 1 if number + 1 >> width + 1 else 0
        if not code_counted(state, buffer, first + width, longer):
            break
        width += 1
    found = 1
    for k in range(width):
        found = found << 1 | code_bit(state, buffer, 32768, number + 1 >> width - 1 - k & 1)
    return found - 1
