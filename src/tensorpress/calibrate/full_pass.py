"""A forward pass that is run for the calls of its layers."""

from collections import deque
from collections.abc import Iterator

from torch import nn

from tensorpress.calibrate.batches import Batch, run_model


def run_to_end(model: nn.Module, batch: Batch) -> None:
    """Run a forward pass; if the model returns an iterator, exhaust it.

    Examples
    --------
    >>> import torch
    >>> class Parts(nn.Module):
    ...     def forward(self, x):
    ...         for part in x:
    ...             print(float(part))
    ...             yield part
    >>> run_to_end(Parts(), Batch((torch.tensor([1.0, 2.0]),), None))
    1.0
    2.0
    """
    output = run_model(model, batch)
    if isinstance(output, Iterator):
        deque(output, maxlen=0)
