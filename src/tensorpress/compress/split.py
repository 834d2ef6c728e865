"""Calibration data in two parts: one that layers are fitted to, and one that judges."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from tensorpress.calibrate.batches import Batch, CalibrationBatch

HELD_OUT = 0.2
"""Share of the examples that nothing is fitted to."""


def split_batches(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Return batches to fit to, and batches to compare outputs on.

    The latter are about a fifth of the examples, the last ones, cut out of a batch where needed. A
    single example is in both.

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
    left = total - max(1, round(HELD_OUT * total))
    fitted: list[Batch] = []
    judged: list[Batch] = []
    for batch in batches:
        size = len(batch)
        if left >= size:
            fitted.append(batch)
        elif left <= 0:
            judged.append(batch)
        else:
            fitted.append(_part(batch, 0, left))
            judged.append(_part(batch, left, size))
        left -= size
    return fitted, judged


def user_batches(batches: Sequence[Batch]) -> list[CalibrationBatch]:
    """Return batches in the form in which users give them, without labels."""
    return [dict(batch.named) if batch.named else (batch.inputs, None) for batch in batches]


def rebatch(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Return batches of no more examples than ``size``, cut out of larger ones.

    Examples
    --------
    >>> import torch
    >>> [len(batch) for batch in rebatch([Batch((torch.zeros(10, 3),), None)], 4)]
    [4, 4, 2]
    """
    return [
        _part(batch, start, min(start + size, len(batch)))
        for batch in batches
        for start in range(0, len(batch), size)
    ]


def _part(batch: Batch, start: int, stop: int) -> Batch:
    size = len(batch)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[start:stop] if tensor.ndim and len(tensor) == size else tensor

    labels = batch.labels
    return replace(
        batch,
        inputs=tuple(map(cut, batch.inputs)),
        labels=None if labels is None else cut(labels),
        named={name: cut(value) for name, value in batch.named.items()},
    )
