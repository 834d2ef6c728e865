"""Decompositions with one thread, for reproducible results where more threads are no faster."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

MOST_VALUES = 1 << 22
"""Maximum number of values of a weight that is decomposed with one thread."""


@contextmanager
def one_thread(weight: Tensor) -> Iterator[None]:
    """Run a block that decomposes a weight with one thread, unless the weight is large.

    LAPACK divides matrices of a few hundred rows among threads, which changes the last bits of the
    results without being faster. In other threads than the main one, nothing changes, because a new
    thread copies the number of threads when it starts.

    Examples
    --------
    >>> with one_thread(torch.ones(300, 300)):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    main = threading.current_thread() is threading.main_thread()
    if before == 1 or not main or weight.device.type != "cpu" or weight.numel() > MOST_VALUES:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
