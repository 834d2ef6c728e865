"""One thread for decompositions that more would not speed up, so that their bits are the same."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

MOST_VALUES = 1 << 22
"""Values of the largest weight whose decomposition gets one thread."""


@contextmanager
def one_thread(weight: Tensor) -> Iterator[None]:
    """Run a block that decomposes a weight with one thread, unless the weight is large.

    LAPACK divides matrices of some hundred rows among threads, and their results differ in the last
    bits from those of one thread, which is not slower. A block in any other than the main thread is
    run as it is, because a new thread takes the number that is set while it starts.

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
