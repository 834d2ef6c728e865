"""The rank at which a matrix keeps a fraction of its energy."""

import numpy as np

from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks.checks import SingularValues, sort_singular_values


def energy_rank(singular_values: SingularValues, fraction: float) -> int:
    """Return the smallest rank that keeps at least a fraction of the energy of a matrix.

    The energy is Σσ², so that the truncated matrix has a relative error of at most √(1 − fraction).

    Parameters
    ----------
    singular_values : Tensor, array or sequence of float
        All L singular values of one matrix, in any order.
    fraction : float
        The fraction in (0, 1]; 1 keeps all L components, including those that are zero.

    Returns
    -------
    int
        The rank, from 1 to L; it is 1 for a zero matrix.

    Raises
    ------
    InvalidArgumentError
        If the fraction is out of range, there are no values, or a value is negative or not finite.

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
    # The smallest r with Σ_{i≤r} σ_i² ≥ fraction · Σσ².
    energies = np.cumsum(np.square(values / values[0]))
    # Rounding must not miss a rank that keeps exactly the fraction.
    rounding = len(values) * np.finfo(np.float64).eps
    return int(np.searchsorted(energies, (fraction - rounding) * energies[-1])) + 1


def check_fraction(fraction: float) -> None:
    """Check that a fraction lies in (0, 1].

    Raises
    ------
    InvalidArgumentError
        If it does not.

    Examples
    --------
    >>> check_fraction(1.5)
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: a fraction must lie above 0 and up to 1, got 1.5
    """
    if not 0 < fraction <= 1:
        raise InvalidArgumentError(f"a fraction must lie above 0 and up to 1, got {fraction}")
