"""Analytic empirical variational Bayesian matrix factorization: the rank above the noise."""

from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf, log, log1p, sqrt

import numpy as np
from numpy.typing import NDArray

from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks.checks import SingularValues, sort_singular_values


@dataclass(frozen=True)
class EVBMF:
    """What variational Bayes finds in a matrix: low rank plus Gaussian noise.

    Attributes
    ----------
    rank : int
        Number of components that stand out from the noise; may be 0.
    noise_variance : float
        σ² of one entry of the matrix.
    shrunk : tuple of float
        The kept singular values, descending, less what the noise adds to them.
    """

    rank: int
    noise_variance: float
    shrunk: tuple[float, ...]


def evbmf(
    singular_values: SingularValues,
    rows: int,
    columns: int,
    *,
    noise_variance: float | None = None,
) -> EVBMF:
    """Return the global empirical variational Bayes solution of a matrix factorization.

    The matrix is modelled as low rank plus independent Gaussian noise; a component is kept if
    γ² > M σ² x̄. A matrix and its transpose give the same result, whatever its scale.

    Parameters
    ----------
    singular_values : Tensor, array or sequence of float
        All L = min(rows, columns) singular values, in any order.
    rows, columns : int
        Of the matrix; M is the larger one.
    noise_variance : float, optional
        σ² where it is known; otherwise the global minimum of the free energy. An estimate never
        falls so low that components within the rounding errors of a float64 Gram matrix are kept.

    Raises
    ------
    InvalidArgumentError
        For another number of values, values that are negative or not finite, or a noise variance
        that is not positive and finite.

    References
    ----------
    Nakajima, Sugiyama, Babacan, Tomioka (2013), "Global analytic solution of fully-observed
    variational Bayesian matrix factorization", JMLR 14. The exact threshold: Nakajima, Tomioka,
    Sugiyama, Babacan (2012), "Perfect dimensionality recovery by variational Bayesian PCA".

    Examples
    --------
    >>> found = evbmf([9.0, 1.1, 1.0, 0.9], 4, 40)
    >>> found.rank, round(found.noise_variance, 4), round(found.shrunk[0], 4)
    (1, 0.026, 8.8725)
    """
    values = sort_singular_values(singular_values)
    small, large = sorted((rows, columns))
    if len(values) != small:
        raise InvalidArgumentError(
            f"a {rows}×{columns} matrix has {small} singular values, got {len(values)}"
        )
    if noise_variance is not None and not 0 < noise_variance < inf:
        raise InvalidArgumentError(
            f"a noise variance must be positive and finite, got {noise_variance}"
        )
    if not values[0]:
        return EVBMF(0, noise_variance or 0.0, ())
    squares = np.square(values / values[0])
    mean = float(squares.mean())
    energy = _FreeEnergy(squares / mean, small, large)
    largest = float(values[0])
    if noise_variance is None:
        level, rank = energy.minimum()
        noise_variance = level * mean * largest * largest / large
    else:
        # A level above zero keeps x finite; one this low shrinks nothing.
        level = max(noise_variance * large / mean / largest / largest, 1e-300)
        rank = energy.kept(level)
    x = energy.squares[:rank] / level
    shrunk = values[:rank] * (_larger_root(x, energy.aspect)[0] / x)
    return EVBMF(rank, noise_variance, tuple(shrunk.tolist()))


@lru_cache(maxsize=4096)
def threshold_root(aspect: float) -> float:
    """Return τ̲, where keeping a component costs as much free energy as it gains.

    It is the positive root of Φ(τ) + Φ(τ/α) = 0 with Φ(z) = ln(1+z)/z − ½. The 2.5129·√α of other
    implementations is exact at α = 1 only.

    Parameters
    ----------
    aspect : float
        α = L/M in (0, 1], the smaller side of the matrix over the larger.

    References
    ----------
    Nakajima, Tomioka, Sugiyama, Babacan (2012), "Perfect dimensionality recovery by variational
    Bayesian PCA".

    Examples
    --------
    >>> round(threshold_root(1.0), 4), round(threshold_root(0.1), 4)
    (2.5129, 0.8222)
    """
    if not 0 < aspect <= 1:
        raise InvalidArgumentError(f"an aspect ratio must lie above 0 and up to 1, got {aspect}")
    # τ(Φ(τ) + Φ(τ/α)) is concave and negative at 3 for every α: Newton's steps fall to the root.
    tau = 3.0
    while True:
        gain = log1p(tau) + aspect * log1p(tau / aspect) - tau
        slope = (aspect - tau * tau) / ((tau + 1) * (tau + aspect))
        lower = tau - gain / slope
        if lower >= tau:
            return tau
        tau = lower


class _FreeEnergy:
    """The free energy over the noise level s = M σ², for γ² with a mean of 1.

    The ``kept`` largest components have x = γ²/s above the cutoff x̄, the others do not. A term of
    the paper that does not depend on s, Σ ln γ², is left out: it is infinite at γ = 0.
    """

    def __init__(self, squares: NDArray[np.float64], small: int, large: int) -> None:
        self.squares = squares
        self.tails = np.cumsum(squares[::-1])[::-1]
        self.small = small
        self.most_kept = -(-small * large // (small + large)) - 1
        self.aspect = small / large
        self.root = threshold_root(self.aspect)
        self.cutoff = (1 + self.root) * (1 + self.aspect / self.root)

    def kept(self, level: float) -> int:
        """Return the number of components above the cutoff."""
        return int(np.count_nonzero(self.squares > level * self.cutoff))

    def value(self, log_level: float, kept: int) -> float:
        """Return the free energy."""
        level, alpha = exp(log_level), self.aspect
        tau = _larger_root(self.squares[:kept] / level, alpha)[0]
        # x − τ = 1 + α + α/τ, without its cancellation at large x.
        terms = 1 + alpha + alpha / tau + np.log1p(tau) + alpha * np.log1p(tau / alpha)
        return float(self.small * log_level + self.tails[kept] / level + terms.sum())

    def slopes(self, log_level: float, kept: int) -> tuple[float, float]:
        """Return the first and second derivative by ln s."""
        level, alpha = exp(log_level), self.aspect
        x = self.squares[:kept] / level
        tau, gap = _larger_root(x, alpha)
        smaller = alpha / tau
        noise = float(self.tails[kept]) / level
        slope = self.small - noise - kept * (1 + alpha) - float(smaller.sum())
        return slope, noise - float((x * smaller / gap).sum())

    def minimum(self) -> tuple[float, int]:
        """Return the noise level of the global minimum and the number of components kept there.

        The slope drops where a component passes the cutoff, so no minimum lies there; and between
        two such points it is concave, so at most one minimum does.
        """
        lowest = self._lowest_level()
        candidates = [(log(lowest), self.kept(lowest)), (0.0, self.kept(1.0))]
        kept = np.arange(self.most_kept + 1)
        # The level at which a component passes the cutoff; the intervals lie between these.
        passing = self.squares[: self.most_kept + 1] / self.cutoff
        starts = np.maximum(passing, lowest)
        ends = np.clip(np.concatenate(([1.0], passing[:-1])), lowest, 1.0)
        # Cheap bounds on the slope, from α/τ̲ ≥ α/τ > 0, leave few intervals to look into.
        tails, alpha = self.tails[: self.most_kept + 1], self.aspect
        most = self.small - tails / ends - kept * (1 + alpha)
        least = self.small - tails / starts - kept * (1 + alpha + alpha / self.root)
        for index in np.flatnonzero((starts < ends) & (most > 0) & (least < 0)).tolist():
            found = self._minimum_between(log(starts[index]), log(ends[index]), index)
            if found is not None:
                candidates.append((found, index))
        log_level, best = min(candidates, key=lambda candidate: self.value(*candidate))
        return exp(log_level), best

    def _minimum_between(self, start: float, end: float, kept: int) -> float | None:
        """Return ln s of the minimum in an interval, if there is one.

        Newton's steps from the left never pass the first root of a concave slope.
        """
        log_level = start
        while True:
            slope, curvature = self.slopes(log_level, kept)
            if slope >= 0:
                return log_level if log_level > start else None
            if curvature <= 0 or log_level - slope / curvature > end:
                return None
            following = log_level - slope / curvature
            if following == log_level:
                return log_level
            log_level = following

    def _lowest_level(self) -> float:
        """Return a positive lower bound of the noise level, at most 1 (the mean of all γ²)."""
        left_out = self.squares[self.most_kept :]
        # Squares below this are the rounding errors of a Gram matrix of the largest.
        rounding = self.small * np.finfo(np.float64).eps * self.squares[0]
        return float(min(max(max(left_out[0], rounding) / self.cutoff, left_out.mean()), 1.0))


def _larger_root(
    x: NDArray[np.float64], alpha: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the larger root τ of x = (1 + τ)(1 + α/τ), and how far the smaller one, α/τ, is."""
    roots_sum, distance = x - 1 - alpha, 2 * sqrt(alpha)
    gap = np.sqrt(roots_sum - distance) * np.sqrt(roots_sum + distance)
    return (roots_sum + gap) / 2, gap
