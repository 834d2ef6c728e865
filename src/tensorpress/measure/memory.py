"""Peak memory."""

import sys

import torch


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that were used: by tensors on a GPU, else by this process.

    None where the system does not tell, which is so on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * getrusage(RUSAGE_SELF).ru_maxrss
