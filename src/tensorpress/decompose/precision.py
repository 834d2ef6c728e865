"""The precision in which decompositions compute, and the accuracy of their errors."""

from collections.abc import Callable

import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError

DEVICES_WITHOUT_FLOAT64 = frozenset({"mps"})


def to_working_precision(tensor: Tensor) -> Tensor:
    """Return a tensor as decompositions compute with it: checked, detached, in float64.

    Devices without float64 compute in float32. A tensor that already has the dtype is not copied.

    Parameters
    ----------
    tensor : Tensor
        Tensor of any shape with at least one entry, any floating dtype.

    Returns
    -------
    Tensor
        The same values on the same device, without a gradient.

    Raises
    ------
    InvalidArgumentError
        If the tensor has no entries, integers or complex numbers, NaN or infinite values, or values
        so large or small that products of four of them overflow or vanish.

    Examples
    --------
    >>> to_working_precision(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float64
    """
    shape = tuple(tensor.shape)
    if not tensor.is_floating_point():
        raise InvalidArgumentError(
            f"only tensors of real floating-point numbers can be decomposed, got {tensor.dtype}"
        )
    if tensor.numel() == 0:
        raise InvalidArgumentError(f"cannot decompose a tensor of shape {shape}: it has no entries")
    tensor = tensor.detach()
    # NaN propagates through the minimum and the maximum, so no mask of the tensor's size is needed.
    largest = float(torch.stack(tensor.aminmax()).abs().max())
    if not largest < float("inf"):
        raise InvalidArgumentError(
            f"cannot decompose a tensor of shape {shape} with NaN or infinite values"
        )
    dtype = torch.float32 if tensor.device.type in DEVICES_WITHOUT_FLOAT64 else torch.float64
    # Energies are squares of values, and their products with Gram matrices are fourth powers.
    upper = torch.finfo(dtype).max ** 0.25 / tensor.numel()
    lower = torch.finfo(dtype).tiny ** 0.25
    if largest > upper or 0 < largest < lower:
        raise InvalidArgumentError(
            f"cannot decompose a tensor of shape {shape} whose largest value is {largest:.1e}: "
            f"in {dtype} it must lie between {lower:.1e} and {upper:.1e}; scale it first"
        )
    return tensor.to(dtype)


def energy(tensor: Tensor) -> float:
    """Return ‖X‖² of a tensor of any shape, summed in float64 if the device supports it.

    Examples
    --------
    >>> energy(torch.tensor([3.0, 4.0]))
    25.0
    """
    dtype = None if tensor.device.type in DEVICES_WITHOUT_FLOAT64 else torch.float64
    return float(torch.linalg.vector_norm(tensor, dtype=dtype)) ** 2


def projection_error(tensor: Tensor, energy: float, rebuild: Callable[[], Tensor]) -> float:
    """Return ‖A − Â‖ / ‖A‖ for an orthogonal projection Â of a tensor A; 0 for a zero tensor.

    By Pythagoras, ‖A − Â‖² = ‖A‖² − ‖Â‖². For errors below 1e-3, where this difference has lost
    digits, the error is measured on the rebuilt tensor instead.

    Parameters
    ----------
    tensor : Tensor
        The tensor A, in working precision.
    energy : float
        The energy ‖Â‖² of the projection.
    rebuild : callable
        Function that returns Â.

    Examples
    --------
    >>> projection_error(torch.tensor([3.0, 4.0]), 9.0, lambda: torch.tensor([3.0, 0.0]))
    0.8
    """
    norm = float(torch.linalg.vector_norm(tensor))
    if norm == 0:
        return 0.0
    discarded = 1 - energy / norm**2
    if discarded > 1e-6:
        return float(discarded**0.5)
    return float(torch.linalg.vector_norm(tensor - rebuild())) / norm
