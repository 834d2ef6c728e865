"""Detection of tensor subclasses that store their values in another format."""

from torch import Tensor


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor stores its values as torch does.

    Quantized weights of other libraries do not: those of torchao override every operation, and
    those of bitsandbytes change when they are moved.

    Examples
    --------
    >>> import torch
    >>> is_plain(torch.zeros(3)), is_plain(torch.nn.Parameter(torch.zeros(3)))
    (True, True)
    """
    kind = type(tensor)
    return kind.__torch_dispatch__ is Tensor.__torch_dispatch__ and kind.to is Tensor.to
