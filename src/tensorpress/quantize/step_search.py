"""A search for the steps, and the price of a bit, that fill a budget."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log2
from typing import Generic, Protocol, TypeVar

from tensorpress.errors import InvalidArgumentError

MIN_USE = 0.99
"""A search ends if this share of a budget is used."""

_TARGET_USE = 0.995  # share of the limit at which a search stops
_ATTEMPTS = 40
_MIN_GAP = 1 / 64  # octaves between steps that fit and steps that do not
_MIN_SLOPE = 1 / 4  # of a secant, relative to the expected slope
_MAX_PRICE = 0.6  # squared steps per bit


class HasCost(Protocol):
    """A result whose cost a budget limits."""

    @property
    def cost(self) -> float:
        """The cost, in the unit of the budget."""


Result = TypeVar("Result", bound=HasCost)


@dataclass
class Search(Generic[Result]):
    """A search for the result of the largest cost within a limit.

    Attributes
    ----------
    attempt : callable
        A function of the log2 of the base of all steps and the price of a bit in squared steps. The
        cost of its result falls with both.
    limit : float
        The largest cost.
    slope : float
        The expected fall of the cost when steps double. The search estimates the slope from
        results, but not below a quarter of this.
    lowest : float
        log2 of the finest base.
    """

    attempt: Callable[[float, float], Result]
    limit: float
    slope: float
    lowest: float

    def run(self, start: float, price: float) -> Result:
        """Return the best result within the limit.

        Parameters
        ----------
        start : float
            log2 of the base to begin with.
        price : float
            The price of a bit in squared steps; it is raised only to use the rest of the limit
            between two neighbouring steps.

        Raises
        ------
        InvalidArgumentError
            If no result is within the limit.

        Examples
        --------
        >>> from types import SimpleNamespace
        >>> def attempt(base, price):
        ...     return SimpleNamespace(cost=1000 - 100 * base)
        >>> 995 <= 10 * Search(attempt, 100.0, 100.0, -20.0).run(0.0, 0.0).cost <= 1000
        True
        """
        # The bracket: the last base above the limit, and the last one within it.
        fine: tuple[float, Result] | None = None
        coarse: tuple[float, Result] | None = None
        base = max(start, self.lowest)
        slope = self.slope
        for _ in range(_ATTEMPTS):
            last = fine or coarse
            result = self.attempt(base, price)
            # secant: (c_last - c) / (b - b_last)
            if last is not None and base != last[0]:
                secant = (last[1].cost - result.cost) / (base - last[0])
                slope = max(secant, _MIN_SLOPE * self.slope)
            if result.cost <= self.limit:
                coarse = (base, result)
                if result.cost >= _TARGET_USE * self.limit or base <= self.lowest:
                    return result
            else:
                fine = (base, result)
            if fine is not None and coarse is not None and coarse[0] - fine[0] < _MIN_GAP:
                break
            base = max(self._next_base(base, result, slope, fine, coarse), self.lowest)
        if coarse is None:
            raise InvalidArgumentError(f"no steps give a file within {self.limit:,.0f} bytes")
        return coarse[1] if fine is None else self._search_price(fine[0], price, coarse[1])

    def _next_base(
        self,
        base: float,
        result: Result,
        slope: float,
        fine: tuple[float, Result] | None,
        coarse: tuple[float, Result] | None,
    ) -> float:
        """Return the next base: by the slope, or by interpolation within the bracket."""
        target = self.limit * (1 + _TARGET_USE) / 2
        # b + (c - target) / slope, at most four octaves away, and slightly beyond the target
        if fine is None or coarse is None:
            move = (result.cost - target) / slope
            return base + max(min(move, 4.0), -4.0) + (0.05 if move > 0 else -0.05)
        # b_low + (b_high - b_low) (c_low - target) / (c_low - c_high), away from both ends
        (low, above), (high, below) = fine, coarse
        share = (above.cost - target) / (above.cost - below.cost)
        return low + (high - low) * max(min(share, 0.9), 0.1)

    def _search_price(self, base: float, price: float, best: Result) -> Result:
        """Return the best result at slightly too fine steps, by bisecting a higher price."""
        low, high = price, _MAX_PRICE
        for _ in range(6):
            middle = (low + high) / 2
            result = self.attempt(base, middle)
            if result.cost > self.limit:
                low = middle
                continue
            high = middle
            if result.cost > best.cost:
                best = result
            if result.cost >= _TARGET_USE * self.limit:
                break
        return best


def initial_base(bits: float, sizes: list[tuple[int, float]]) -> float:
    """Return the log2 of the base at which tensors together take about ``bits`` bits.

    Parameters
    ----------
    bits : float
        The bits of all tensors together.
    sizes : list of (int, float)
        For each tensor, the number of values, and the log2 of their root mean square in steps of
        base 1. A value of a normal distribution takes about two bits more than that.

    Examples
    --------
    >>> round(initial_base(3000.0, [(1000, 0.0)]), 1)
    -0.8
    """
    # Bisection of sum_t n_t log2(1 + 2^(2 + log2 rms_t - base)) = bits, which falls with the base.
    low, high = -140.0, 140.0
    for _ in range(40):
        base = (low + high) / 2
        estimate = sum(count * log2(1 + 2 ** min(2 + size - base, 60.0)) for count, size in sizes)
        low, high = (base, high) if estimate > bits else (low, base)
    return high
