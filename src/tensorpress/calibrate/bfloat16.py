"""Forward passes in bfloat16 on machines that are faster at it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def bfloat16_passes(model: nn.Module) -> Iterator[None]:
    """Run a float32 model under autocast to bfloat16 if the hardware multiplies bfloat16.

    Examples
    --------
    >>> with bfloat16_passes(nn.Linear(2, 2).double()):
    ...     torch.is_autocast_enabled("cpu")
    False
    """
    first = next(model.parameters(), torch.empty(0))
    if first.dtype != torch.float32 or not _is_fast(first.device.type):
        yield
        return
    with torch.autocast(first.device.type, torch.bfloat16):
        yield


def _is_fast(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
