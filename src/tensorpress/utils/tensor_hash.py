"""Hashes of tensors."""

from collections.abc import Iterable
from hashlib import sha256

import torch
from torch import Tensor


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Return a hash of the values, shapes and dtypes of tensors, as 16 hexadecimal digits.

    Examples
    --------
    >>> fingerprint([torch.zeros(2)]) == fingerprint([torch.zeros(2, 1)])
    False
    """
    digest = sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
