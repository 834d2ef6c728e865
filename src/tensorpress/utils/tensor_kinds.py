"""Kinds of tensors: plain ones, and those of other libraries that hold their values otherwise."""

from torch import Tensor


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor holds its values as torch does.

    Quantized weights of other libraries do not: torchao's compute every operation by themselves,
    and bitsandbytes' are changed when they are moved.

    Examples
    --------
    >>> import torch
    >>> is_plain(torch.zeros(3)), is_plain(torch.nn.Parameter(torch.zeros(3)))
    (True, True)
    """
    kind = type(tensor)
    return kind.__torch_dispatch__ is Tensor.__torch_dispatch__ and kind.to is Tensor.to
