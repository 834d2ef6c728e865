"""Finding the steps and the price of a bit that fill a budget."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log2
from typing import Generic, Protocol, TypeVar

from tensorpress.errors import InvalidArgumentError

USED = 0.99
"""Share of a budget that is enough."""

_FILLED = 0.995  # where a search stops
_ATTEMPTS = 40
_CLOSE = 1 / 64  # octaves between steps that fit and steps that do not
_FLATTEST = 1 / 4  # slope that is believed, of the one given
_MOST = 0.6  # squared steps that a bit may be worth


class Measured(Protocol):
    """What an attempt measures."""

    @property
    def cost(self) -> float:
        """What the budget limits."""


Found = TypeVar("Found", bound=Measured)


@dataclass
class Search(Generic[Found]):
    """A search for the attempt of the largest cost within a limit.

    Attributes
    ----------
    attempt : callable
        Takes the log2 of the base of all steps and the price of a bit; costs fall with both.
    limit : float
        What the cost must not exceed.
    slope : float
        By how much the cost is expected to fall where steps double. The search learns how much it
        does, and believes no less than a quarter of this.
    lowest : float
        log2 of the finest base.
    """

    attempt: Callable[[float, float], Found]
    limit: float
    slope: float
    lowest: float

    def run(self, start: float, price: float) -> Found:
        """Return the best attempt within the limit.

        Parameters
        ----------
        start : float
            log2 of the base to begin with.
        price : float
            Of a bit; raised only to fill what two neighbouring steps leave.

        Raises
        ------
        InvalidArgumentError
            If nothing that was tried is within the limit.

        Examples
        --------
        >>> from types import SimpleNamespace
        >>> def attempt(base, price):
        ...     return SimpleNamespace(cost=1000 - 100 * base)
        >>> 995 <= 10 * Search(attempt, 100.0, 100.0, -20.0).run(0.0, 0.0).cost <= 1000
        True
        """
        fine: tuple[float, Found] | None = None
        coarse: tuple[float, Found] | None = None
        base = max(start, self.lowest)
        slope = self.slope
        for _ in range(_ATTEMPTS):
            before = fine or coarse
            found = self.attempt(base, price)
            if before is not None and base != before[0]:
                secant = (before[1].cost - found.cost) / (base - before[0])
                slope = max(secant, _FLATTEST * self.slope)
            if found.cost <= self.limit:
                coarse = (base, found)
                if found.cost >= _FILLED * self.limit or base <= self.lowest:
                    return found
            else:
                fine = (base, found)
            if fine is not None and coarse is not None and coarse[0] - fine[0] < _CLOSE:
                break
            base = max(self._next(base, found, slope, fine, coarse), self.lowest)
        if coarse is None:
            raise InvalidArgumentError(f"no file within {self.limit:,.0f} was found")
        return coarse[1] if fine is None else self._filled(fine[0], price, coarse[1])

    def _next(
        self,
        base: float,
        found: Found,
        slope: float,
        fine: tuple[float, Found] | None,
        coarse: tuple[float, Found] | None,
    ) -> float:
        aim = self.limit * (1 + _FILLED) / 2
        if fine is None or coarse is None:
            move = (found.cost - aim) / slope
            return base + max(min(move, 4.0), -4.0) + (0.05 if move > 0 else -0.05)
        (low, above), (high, below) = fine, coarse
        share = (above.cost - aim) / (above.cost - below.cost)
        return low + (high - low) * max(min(share, 0.9), 0.1)

    def _filled(self, base: float, price: float, best: Found) -> Found:
        """Return what fits at steps that are slightly too fine where a bit is worth more."""
        low, high = price, _MOST
        for _ in range(6):
            middle = (low + high) / 2
            found = self.attempt(base, middle)
            if found.cost > self.limit:
                low = middle
                continue
            high = middle
            if found.cost > best.cost:
                best = found
            if found.cost >= _FILLED * self.limit:
                break
        return best


def first_base(bits: float, sizes: list[tuple[int, float]]) -> float:
    """Return the log2 of the base at which tensors take about so many bits together.

    Parameters
    ----------
    bits : float
        For all of them.
    sizes : list of (int, float)
        Of each the number of values, and the log2 of their root mean square in steps where the base
        is 1. A value of a normal distribution takes two bits more than that.

    Examples
    --------
    >>> round(first_base(3000.0, [(1000, 0.0)]), 1)
    -0.8
    """
    low, high = -140.0, 140.0
    for _ in range(40):
        base = (low + high) / 2
        needed = sum(count * log2(1 + 2 ** min(2 + size - base, 60.0)) for count, size in sizes)
        low, high = (base, high) if needed > bits else (low, base)
    return high
