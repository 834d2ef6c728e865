"""Peak memory."""

import sys

import torch


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes of tensors on a GPU, or of this process.

    None on systems that do not report it, such as Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * getrusage(RUSAGE_SELF).ru_maxrss
