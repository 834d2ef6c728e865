"""Splits calibration data into parts to fit, to choose and to judge."""

from collections.abc import Sequence

import torch

from tensorpress.calibrate.batches import Batch, CalibrationBatch
from tensorpress.calibrate.examples import select_examples

HELD_OUT = 0.2
"""Share of the examples that are held out."""

LEAST_HALF = 20
"""Fewest examples in each half, if one half chooses and the other judges."""


def split_batches(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Split batches into those to fit and those to compare outputs on.

    The latter are about a fifth of the examples: one from each of as many stretches of equal
    length, so that data sorted by class are judged on all classes. A single example is in both.

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
    # Random within its stretch, because every fifth example could have the same class.
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
    """Split examples alternately into halves; all and none if a half would be too small.

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
    """Return batches in the form in which users pass them, without labels."""
    return [dict(batch.named) if batch.named else (batch.inputs, None) for batch in batches]
