"""Telling whether tensors are the same as before."""

from collections.abc import Iterable
from hashlib import sha256

import torch
from torch import Tensor


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Return 16 hexadecimal digits of the values, shapes and dtypes of tensors.

    Examples
    --------
    >>> fingerprint([torch.zeros(2)]) == fingerprint([torch.zeros(2, 1)])
    False
    """
    found = sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        found.update(values.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
