"""The rank that keeps a fraction of a matrix's energy."""

import numpy as np

from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks.checks import SingularValues, sort_singular_values


def energy_rank(singular_values: SingularValues, fraction: float) -> int:
    """Return the smallest rank that keeps at least a fraction of the energy.

    The energy is the sum of the squared singular values, so the truncated matrix has a relative
    error of at most √(1 − fraction).

    Parameters
    ----------
    singular_values : Tensor, array or sequence of float
        All L singular values of one matrix, in any order.
    fraction : float
        In (0, 1]; 1 keeps all L components, also those that are zero.

    Returns
    -------
    int
        From 1 to L; a zero matrix keeps its energy at rank 1.

    Raises
    ------
    InvalidArgumentError
        For a fraction out of range, no values, or values that are negative or not finite.

    Examples
    --------
    >>> energy_rank([2.0, 1.0, 1.0], 0.66), energy_rank([2.0, 1.0, 1.0], 0.67)
    (1, 2)
    """
    check_fraction(fraction)
    values = sort_singular_values(singular_values)
    if fraction == 1:
        return len(values)
    if not values[0]:
        return 1
    kept = np.cumsum(np.square(values / values[0]))
    # A rank that keeps exactly the fraction must not be missed by rounding.
    rounding = len(values) * np.finfo(np.float64).eps
    return int(np.searchsorted(kept, (fraction - rounding) * kept[-1])) + 1


def check_fraction(fraction: float) -> None:
    """Raise unless a fraction lies in (0, 1].

    Examples
    --------
    >>> check_fraction(1.5)
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: a fraction must lie above 0 and up to 1, got 1.5
    """
    if not 0 < fraction <= 1:
        raise InvalidArgumentError(f"a fraction must lie above 0 and up to 1, got {fraction}")
