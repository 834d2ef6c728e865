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
    """The variational Bayes estimate of a matrix of low rank plus Gaussian noise.

    Attributes
    ----------
    rank : int
        Number of components above the noise, at least 0.
    noise_variance : float
        Variance σ² of the noise in one entry of the matrix.
    shrunk : tuple of float
        The singular values of these components, descending, shrunk by what the noise adds to them.
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
    """Return the global solution of empirical variational Bayesian matrix factorization.

    The matrix is modelled as a matrix of low rank plus independent Gaussian noise. A component with
    the singular value γ is above the noise if γ² > M σ² x̄. A matrix and its transpose have the same
    solution, and scaling the matrix scales it.

    Parameters
    ----------
    singular_values : Tensor, array or sequence of float
        All L = min(rows, columns) singular values, in any order.
    rows, columns : int
        Shape of the matrix, whose larger size is M.
    noise_variance : float, optional
        The variance σ², if it is known; by default the global minimum of the free energy. The
        estimate stays above the rounding errors of a float64 Gram matrix.

    Returns
    -------
    EVBMF
        Rank, noise variance and shrunk singular values.

    Raises
    ------
    InvalidArgumentError
        If the number of values differs, a value is negative or not finite, or the noise variance is
        not positive and finite.

    References
    ----------
    Nakajima, Sugiyama, Babacan, Tomioka (2013), "Global analytic solution of fully-observed
    variational Bayesian matrix factorization", JMLR 14. The exact threshold: Nakajima, Tomioka,
    Sugiyama, Babacan (2012), "Perfect dimensionality recovery by variational Bayesian PCA".

    Examples
    --------
    >>> result = evbmf([9.0, 1.1, 1.0, 0.9], 4, 40)
    >>> result.rank, round(result.noise_variance, 4), round(result.shrunk[0], 4)
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
    # Work with γ² of mean 1 and the noise level s = M σ² in that unit.
    squares = np.square(values / values[0])
    mean = float(squares.mean())
    energy = _FreeEnergy(squares / mean, small, large)
    largest = float(values[0])
    if noise_variance is None:
        level, rank = energy.minimize()
        noise_variance = level * mean * largest * largest / large
    else:
        # A level above zero keeps x finite; one this low shrinks nothing.
        level = max(noise_variance * large / mean / largest / largest, 1e-300)
        rank = energy.count_components(level)
    # γ̂ = γ τ/x = γ/2 [1 − (1+α)/x + √((1 − (1+α)/x)² − 4α/x²)], x = γ²/s
    x = energy.squares[:rank] / level
    shrunk = values[:rank] * (_larger_root(x, energy.aspect)[0] / x)
    return EVBMF(rank, noise_variance, tuple(shrunk.tolist()))


@lru_cache(maxsize=4096)
def threshold_root(aspect: float) -> float:
    """Return τ̲, where the free energy that a component gains equals its cost.

    It is the positive root of Φ(τ) + Φ(τ/α) = 0 with Φ(z) = ln(1+z)/z − ½. The approximation
    2.5129·√α of other implementations is exact only at α = 1.

    Parameters
    ----------
    aspect : float
        The ratio α = L/M in (0, 1] of the smaller to the larger size of the matrix.

    Raises
    ------
    InvalidArgumentError
        If the ratio is out of range.

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
    # f(τ) = τ(Φ(τ) + Φ(τ/α)) = ln(1+τ) + α ln(1+τ/α) − τ is concave and negative at τ = 3 for every
    # α, so that Newton's steps τ ← τ − f/f′ fall to the root.
    tau = 3.0
    while True:
        gain = log1p(tau) + aspect * log1p(tau / aspect) - tau
        slope = (aspect - tau * tau) / ((tau + 1) * (tau + aspect))
        lower = tau - gain / slope
        if lower >= tau:
            return tau
        tau = lower


class _FreeEnergy:
    """The free energy as a function of the noise level s = M σ², for γ² with a mean of 1.

    With x = γ²/s, τ the larger root of x = (1+τ)(1+α/τ) and the cutoff x̄ = (1+τ̲)(1+α/τ̲), it is
    Σ_{x>x̄} [x − τ + ln((τ+1)/x) + α ln(τ/α+1)] + Σ_{x≤x̄} [x − ln x]. The constant −Σ ln γ² is left
    out, which is infinite at γ = 0.

    Parameters
    ----------
    squares : array
        γ² of shape (L,), descending.
    small, large : int
        The sizes L ≤ M of the matrix.

    References
    ----------
    Nakajima, Sugiyama, Babacan, Tomioka (2013), "Global analytic solution of fully-observed
    variational Bayesian matrix factorization", JMLR 14.
    """

    def __init__(self, squares: NDArray[np.float64], small: int, large: int) -> None:
        self.squares = squares
        self.tails = np.cumsum(squares[::-1])[::-1]
        self.small = small
        # At most ⌈L/(1+α)⌉ − 1 components are above the noise.
        self.max_rank = -(-small * large // (small + large)) - 1
        self.aspect = small / large
        self.root = threshold_root(self.aspect)
        self.cutoff = (1 + self.root) * (1 + self.aspect / self.root)

    def count_components(self, level: float) -> int:
        """Return the number of components with γ² > s x̄."""
        return int(np.count_nonzero(self.squares > level * self.cutoff))

    def value(self, log_level: float, rank: int) -> float:
        """Return the free energy at ln s, where the ``rank`` largest components are above x̄."""
        level, alpha = exp(log_level), self.aspect
        tau = _larger_root(self.squares[:rank] / level, alpha)[0]
        # x − τ = 1 + α + α/τ, without its cancellation at large x; all −ln x sum to L ln s.
        terms = 1 + alpha + alpha / tau + np.log1p(tau) + alpha * np.log1p(tau / alpha)
        return float(self.small * log_level + self.tails[rank] / level + terms.sum())

    def derivatives(self, log_level: float, rank: int) -> tuple[float, float]:
        """Return the first and second derivative of the free energy by ln s."""
        level, alpha = exp(log_level), self.aspect
        x = self.squares[:rank] / level
        tau, gap = _larger_root(x, alpha)
        smaller = alpha / tau
        noise = float(self.tails[rank]) / level
        # F′ = L − Σ_{x≤x̄} x − Σ_{x>x̄} (1 + α + α/τ)
        slope = self.small - noise - rank * (1 + alpha) - float(smaller.sum())
        # F″ = Σ_{x≤x̄} x − Σ_{x>x̄} x (α/τ) / (τ − α/τ)
        return slope, noise - float((x * smaller / gap).sum())

    def minimize(self) -> tuple[float, int]:
        """Return the noise level of the global minimum, and the number of components above it.

        The slope drops where a component passes the cutoff, so no minimum lies there. Between two
        such levels the slope is concave, so there is at most one minimum.
        """
        lowest = self._lowest_level()
        candidates = [
            (log(lowest), self.count_components(lowest)),
            (0.0, self.count_components(1.0)),
        ]
        ranks = np.arange(self.max_rank + 1)
        # The levels γ²/x̄ at which components pass the cutoff are the ends of the intervals.
        passing = self.squares[: self.max_rank + 1] / self.cutoff
        starts = np.maximum(passing, lowest)
        ends = np.clip(np.concatenate(([1.0], passing[:-1])), lowest, 1.0)
        # Cheap bounds on the slope, from α/τ̲ ≥ α/τ > 0, exclude most intervals.
        tails, alpha = self.tails[: self.max_rank + 1], self.aspect
        upper = self.small - tails / ends - ranks * (1 + alpha)
        lower = self.small - tails / starts - ranks * (1 + alpha + alpha / self.root)
        for rank in np.flatnonzero((starts < ends) & (upper > 0) & (lower < 0)).tolist():
            log_level = self._minimize_between(log(starts[rank]), log(ends[rank]), rank)
            if log_level is not None:
                candidates.append((log_level, rank))
        log_level, best = min(candidates, key=lambda candidate: self.value(*candidate))
        return exp(log_level), best

    def _minimize_between(self, start: float, end: float, rank: int) -> float | None:
        """Return ln s of the minimum in an interval, or None if there is none.

        Newton's steps ln s ← ln s − F′/F″ from the left never pass the first root of a concave
        slope.
        """
        log_level = start
        while True:
            slope, curvature = self.derivatives(log_level, rank)
            if slope >= 0:
                return log_level if log_level > start else None
            if curvature <= 0 or log_level - slope / curvature > end:
                return None
            next_level = log_level - slope / curvature
            if next_level == log_level:
                return log_level
            log_level = next_level

    def _lowest_level(self) -> float:
        """Return a positive lower bound of the noise level, at most 1, the mean of all γ².

        With e = ⌈L/(1+α)⌉ − 1, the bound is max(γ²_{e+1}/x̄, mean_{h>e} γ²_h).
        """
        noise = self.squares[self.max_rank :]
        # Squares below this are rounding errors of a Gram matrix with the largest one.
        rounding = self.small * np.finfo(np.float64).eps * self.squares[0]
        return float(min(max(max(noise[0], rounding) / self.cutoff, noise.mean()), 1.0))


def _larger_root(
    x: NDArray[np.float64], alpha: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the larger root τ of x = (1 + τ)(1 + α/τ), and its distance from the smaller, α/τ."""
    # τ = ½ (x−1−α + √((x−1−α)² − 4α)), and the root is √(x−1−α − 2√α) √(x−1−α + 2√α).
    roots_sum, distance = x - 1 - alpha, 2 * sqrt(alpha)
    gap = np.sqrt(roots_sum - distance) * np.sqrt(roots_sum + distance)
    return (roots_sum + gap) / 2, gap
