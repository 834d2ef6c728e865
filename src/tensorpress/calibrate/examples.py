"""Selects examples of batches, and cuts batches into smaller ones."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tensorpress.calibrate.batches import Batch


def rebatch(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Cut batches into smaller ones of at most ``size`` examples.

    Examples
    --------
    >>> import torch
    >>> [len(batch) for batch in rebatch([Batch((torch.zeros(10, 3),), None)], 4)]
    [4, 4, 2]
    """
    return [
        select_examples(batch, places)
        for batch in batches
        for places in torch.split(torch.arange(len(batch)), size)
    ]


def select_examples(batch: Batch, places: Tensor) -> Batch:
    """Return some examples of a batch.

    All Tensors whose first axis is as long as the batch are cut, except vectors after the first
    Tensor that could number positions, because another axis of that has the same length.
    """
    size, [first, *_] = len(batch), batch.arguments.tensors

    def cut(x: Tensor) -> Tensor:
        if not x.ndim or len(x) != size:
            return x
        if x.ndim == 1 and x is not first and size in first.shape[1:]:
            return x
        return x[places.to(x.device)]

    labels, arguments = batch.labels, batch.arguments.map(cut)
    labelled = labels is not None and labels.ndim and len(labels) == size
    return replace(
        batch,
        inputs=arguments.positional,
        labels=labels[places.to(labels.device)] if labels is not None and labelled else labels,
        named=arguments.named,
    )
