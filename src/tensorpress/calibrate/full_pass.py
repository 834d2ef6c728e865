"""A forward pass of which nothing but its layers' calls matters."""

from collections import deque
from collections.abc import Iterator

from torch import nn

from tensorpress.calibrate.batches import Batch, run_model


def run_to_end(model: nn.Module, batch: Batch) -> None:
    """Run a forward pass, and to its end where the model returns an iterator, such as a generator.

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
