"""The multiple-choice knapsack: an option of every layer, the least total score in a budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

STATES = 2000
"""Sums of costs and scores that are followed at once; fewer than this many make it exact."""


@dataclass(frozen=True)
class Front:
    """The options of a layer that no other of its options beats.

    Attributes
    ----------
    costs, scores : array
        Shape (n,) with n ≥ 1: costs strictly ascending, scores strictly descending.
    """

    costs: Floats
    scores: Floats


def minimize_total(fronts: Sequence[Front], budget: float) -> list[int]:
    """Return the option of every layer, of the least total score within a budget.

    The relaxation to the convex hulls gives a price of cost, a solution and a bound. Options that
    the bound rules out are dropped; dynamic programming over the others, layer by layer, follows
    the sums of costs and scores that no other beats. Where these are more than `STATES`, of those
    whose scores differ by less than a `STATES`-th of their range only the cheapest is followed:
    so much may be lost at most, once a layer.

    Parameters
    ----------
    fronts : sequence of Front
        One a layer, whose cheapest options fit the budget together.
    budget : float
        Of all costs together.

    References
    ----------
    Sinha, Zoltners (1979), "The multiple-choice knapsack problem"; Pisinger (1995), "A minimal
    algorithm for the multiple-choice knapsack problem".

    Examples
    --------
    >>> layer = Front(np.array([1.0, 4.0, 5.0]), np.array([9.0, 6.0, 0.0]))
    >>> minimize_total([layer, layer], 9.0)
    [2, 1]
    """
    chosen, price = _relaxed(fronts, budget)
    if price == 0:
        return chosen
    chosen = spend_rest(fronts, chosen, budget)
    priced = [front.scores + price * front.costs for front in fronts]
    bound = sum(float(values.min()) for values in priced) - price * budget
    gap = max(_total(fronts, chosen)[1] - bound, 0.0)
    losses = [values - values.min() for values in priced]
    found = _follow(fronts, losses, budget, price, gap)
    better = found is not None and _total(fronts, found)[1] < _total(fronts, chosen)[1]
    return found if found is not None and better else chosen


def spend_rest(fronts: Sequence[Front], chosen: Sequence[int], budget: float) -> list[int]:
    """Return dearer options where the rest of a budget pays for them, the greatest gain first.

    Examples
    --------
    >>> layer = Front(np.array([1.0, 4.0, 5.0]), np.array([9.0, 6.0, 0.0]))
    >>> spend_rest([layer, layer], [0, 0], 6.0)
    [2, 0]
    """
    found = list(chosen)
    rest = budget - _total(fronts, found)[0]
    while True:
        reached = [
            max(int(np.searchsorted(front.costs, front.costs[k] + rest, side="right")) - 1, k)
            for front, k in zip(fronts, found, strict=True)
        ]
        gains = [
            front.scores[k] - front.scores[r]
            for front, k, r in zip(fronts, found, reached, strict=True)
        ]
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            return found
        rest -= float(fronts[best].costs[reached[best]] - fronts[best].costs[found[best]])
        found[best] = reached[best]


def _total(fronts: Sequence[Front], chosen: Sequence[int]) -> tuple[float, float]:
    """Return the cost and the score of options together."""
    pairs = list(zip(fronts, chosen, strict=True))
    return (
        sum(float(front.costs[k]) for front, k in pairs),
        sum(float(front.scores[k]) for front, k in pairs),
    )


def _relaxed(fronts: Sequence[Front], budget: float) -> tuple[list[int], float]:
    """Return the steps along the convex hulls that fit, the steepest first, and the price.

    The price is the slope of the first step that does not fit, 0 where all do.
    """
    hulls = [_hull(front) for front in fronts]
    layers = np.repeat(np.arange(len(hulls)), [len(hull) - 1 for hull in hulls])
    ends = np.concatenate([hull[1:] for hull in hulls])
    added = np.concatenate([np.diff(f.costs[h]) for f, h in zip(fronts, hulls, strict=True)])
    gained = np.concatenate([-np.diff(f.scores[h]) for f, h in zip(fronts, hulls, strict=True)])
    order = np.argsort(-gained / added, kind="stable")  # the steps of a hull stay in their order
    cheapest = sum(float(front.costs[0]) for front in fronts)
    spent = cheapest + np.cumsum(added[order])
    fitting = int(np.searchsorted(spent, budget, side="right"))
    chosen = [0] * len(fronts)
    for step in order[:fitting]:
        chosen[layers[step]] = int(ends[step])
    if fitting == len(order):
        return chosen, 0.0
    return chosen, float(gained[order[fitting]] / added[order[fitting]])


def _hull(front: Front) -> Ints:
    """Return the options on the lower convex hull, cheapest first."""
    hull: list[int] = []
    costs, scores = front.costs.tolist(), front.scores.tolist()
    for k in range(len(costs)):
        while len(hull) > 1:
            a, b = hull[-2:]
            rise = (scores[b] - scores[a]) * (costs[k] - costs[a])
            if rise < (scores[k] - scores[a]) * (costs[b] - costs[a]):
                break
            hull.pop()
        hull.append(k)
    return np.array(hull, dtype=np.intp)


@dataclass(frozen=True)
class _States:
    """Sums over the first layers, and where each comes from: a state before and an option."""

    costs: Floats
    losses: Floats
    before: Ints
    options: Ints


def _follow(
    fronts: Sequence[Front], losses: Sequence[Floats], budget: float, price: float, gap: float
) -> list[int] | None:
    """Return the options whose scores are least by dynamic programming, None if it finds none.

    A loss is a score plus the price of its cost, less the least such value of the layer. Sums of
    losses and the price of what is not spent above ``gap`` lead to no better solution.
    """
    gap *= 1 + 1e-9
    kept = [np.flatnonzero(loss <= gap) for loss in losses]
    least = np.array([front.costs[k[0]] for front, k in zip(fronts, kept, strict=True)])
    most = np.array([front.costs[k[-1]] for front, k in zip(fronts, kept, strict=True)])
    least_after = np.append(np.cumsum(least[::-1])[::-1], 0.0)
    most_after = np.append(np.cumsum(most[::-1])[::-1], 0.0)
    none = np.zeros(1, dtype=np.intp)
    reached = [_States(np.zeros(1), np.zeros(1), none, none)]
    for layer, (front, loss, options) in enumerate(zip(fronts, losses, kept, strict=True)):
        last = reached[-1]
        costs = (last.costs[:, None] + front.costs[options]).ravel()
        sums = (last.losses[:, None] + loss[options]).ravel()
        unspent = np.maximum(budget - costs - most_after[layer + 1], 0.0)
        possible = (costs <= budget - least_after[layer + 1]) & (sums + price * unspent <= gap)
        places = np.flatnonzero(possible)
        places = places[_unbeaten(costs[places], sums[places] - price * costs[places])]
        if not len(places):
            return None
        before, option = np.divmod(places, len(options))
        reached.append(_States(costs[places], sums[places], before, options[option]))
    return _traced(reached, price)


def _unbeaten(costs: Floats, scores: Floats) -> Ints:
    """Return the states that no other beats, cheapest first and at most about `STATES`."""
    order: Ints = np.lexsort((scores, costs))
    least = np.minimum.accumulate(scores[order])
    order = order[_firsts(least)]
    if len(order) > STATES:
        found = scores[order]
        order = order[_firsts(np.floor((found[0] - found) * (STATES / (found[0] - found[-1]))))]
    return order


def _firsts(values: Floats) -> NDArray[np.bool_]:
    """Return where values differ from the one before."""
    changed: NDArray[np.bool_] = np.diff(values, prepend=np.nan) != 0
    return changed


def _traced(reached: Sequence[_States], price: float) -> list[int]:
    """Return the options that lead to the least score."""
    last = reached[-1]
    place = int(np.argmin(last.losses - price * last.costs))
    chosen = []
    for states in reached[:0:-1]:
        chosen.append(int(states.options[place]))
        place = int(states.before[place])
    return chosen[::-1]
