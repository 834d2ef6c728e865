"""Calibration data in parts: those that layers are fitted to, that choose, and that judge."""

from collections.abc import Sequence

import torch

from tensorpress.calibrate.batches import Batch, CalibrationBatch
from tensorpress.calibrate.examples import select_examples

HELD_OUT = 0.2
"""Share of the examples that nothing is fitted to."""

LEAST_HALF = 20
"""Fewest examples that one half of them has, if one is to choose and the other to judge."""


def split_batches(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Return batches to fit to, and batches to compare outputs on.

    The latter are about a fifth of the examples: one out of each of as many stretches of equal
    length, so that data in the order of their classes are judged on all classes. A single example
    is in both.

    Examples
    --------
    >>> import torch
    >>> fitted, held_out = split_batches([Batch((torch.zeros(10, 3),), None)])
    >>> [len(batch) for batch in fitted], [len(batch) for batch in held_out]
    ([8], [2])
    """
    total = sum(map(len, batches))
    if total == 1:
        return list(batches), list(batches)
    count = max(1, round(HELD_OUT * total))
    # At random in its stretch: every fifth example might be of the same class.
    random = torch.rand(count, generator=torch.Generator().manual_seed(0))
    judged = torch.zeros(total, dtype=torch.bool)
    ends = torch.arange(count + 1) * total // count
    judged[ends[:-1] + (random * ends.diff()).long()] = True
    parts: tuple[list[Batch], list[Batch]] = [], []
    for batch, chosen in zip(batches, torch.split(judged, [*map(len, batches)]), strict=True):
        for part, places in zip(parts, (~chosen, chosen), strict=True):
            if places.all():
                part.append(batch)
            elif places.any():
                part.append(select_examples(batch, places.nonzero()[:, 0]))
    return parts


def halve_batches(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Return every other example, and those between; all and none where a half has too few.

    Examples
    --------
    >>> import torch
    >>> one, other = halve_batches([Batch((torch.zeros(41, 3),), None)])
    >>> [len(batch) for batch in one], [len(batch) for batch in other]
    ([21], [20])
    """
    if sum(map(len, batches)) < 2 * LEAST_HALF:
        return list(batches), []
    parts: tuple[list[Batch], list[Batch]] = [], []
    start = 0
    for batch in batches:
        odd = (start + torch.arange(len(batch))) % 2
        for part, places in zip(parts, (odd == 0, odd == 1), strict=True):
            if places.any():
                part.append(select_examples(batch, places.nonzero()[:, 0]))
        start += len(batch)
    return parts


def user_batches(batches: Sequence[Batch]) -> list[CalibrationBatch]:
    """Return batches in the form in which users give them, without labels."""
    return [dict(batch.named) if batch.named else (batch.inputs, None) for batch in batches]
