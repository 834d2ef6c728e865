"""Singular values as every rank rule takes them: checked, float64, descending."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tensorpress.errors import InvalidArgumentError

SingularValues: TypeAlias = Tensor | NDArray[np.floating] | Sequence[float]

LARGEST_VALUE = 1e150
"""Above it, squares are no longer finite."""


def descending(singular_values: SingularValues) -> NDArray[np.float64]:
    """Return the singular values of one matrix as a descending float64 array.

    Parameters
    ----------
    singular_values : Tensor, array or sequence of float
        Shape (L,) with L ≥ 1, in any order, on any device.

    Raises
    ------
    InvalidArgumentError
        For another shape, or values that are negative, NaN, or above 1e150.

    Examples
    --------
    >>> descending([1.0, 3.0, 2.0]).tolist()
    [3.0, 2.0, 1.0]
    """
    if isinstance(singular_values, Tensor):
        singular_values = singular_values.detach().cpu().double().numpy()
    values = np.asarray(singular_values, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise InvalidArgumentError(
            f"expected the singular values of one matrix, got an array of shape {values.shape}"
        )
    if not ((values >= 0) & (values <= LARGEST_VALUE)).all():
        raise InvalidArgumentError(
            f"singular values must lie between 0 and {LARGEST_VALUE:.0e}, "
            f"got values from {values.min()} to {values.max()}"
        )
    return np.sort(values)[::-1]
