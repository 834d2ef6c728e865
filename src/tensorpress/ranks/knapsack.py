"""The multiple-choice knapsack: one option per layer with the least total score in a budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

STATES = 2000
"""Largest number of states of the dynamic programming; with fewer states it is exact."""


@dataclass(frozen=True)
class Front:
    """The Pareto front of a layer: the options that no other option beats in cost and score.

    Attributes
    ----------
    costs, scores : array
        Arrays of shape (n,) with n ≥ 1: costs strictly ascending, scores strictly descending.
    """

    costs: Floats
    scores: Floats


def minimize_total(fronts: Sequence[Front], budget: float) -> list[int]:
    """Return the options of the least total score whose total cost is within a budget.

    The relaxation to the convex hulls gives a price of cost, a solution and a lower bound. Options
    that the bound rules out are dropped. Dynamic programming over the others, layer by layer, keeps
    the Pareto front of total costs and scores. If this has more than `STATES` points, scores are
    rounded to a `STATES`-th of their range, so the total score can rise by that much per layer.

    Parameters
    ----------
    fronts : sequence of Front
        One front for each layer, whose cheapest options together fit the budget.
    budget : float
        Upper bound on the total cost.

    Returns
    -------
    list of int
        The index of an option for each layer.

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
    choice, price = _relax(fronts, budget)
    if price == 0:
        return choice
    choice = spend_rest(fronts, choice, budget)
    # For any price λ ≥ 0, Σ s_l ≥ Σ min(s_l + λ c_l) − λ budget: the Lagrangian lower bound.
    priced = [front.scores + price * front.costs for front in fronts]
    bound = sum(float(values.min()) for values in priced) - price * budget
    gap = max(_total(fronts, choice)[1] - bound, 0.0)
    losses = [values - values.min() for values in priced]
    better = _improve(fronts, losses, budget, price, gap)
    if better is not None and _total(fronts, better)[1] < _total(fronts, choice)[1]:
        return better
    return choice


def spend_rest(fronts: Sequence[Front], choice: Sequence[int], budget: float) -> list[int]:
    """Return a choice with better options as long as the budget pays for them.

    The option with the greatest gain in score comes first.

    Parameters
    ----------
    fronts : sequence of Front
        One front for each layer.
    choice : sequence of int
        The index of an option for each layer.
    budget : float
        Upper bound on the total cost.

    Examples
    --------
    >>> layer = Front(np.array([1.0, 4.0, 5.0]), np.array([9.0, 6.0, 0.0]))
    >>> spend_rest([layer, layer], [0, 0], 6.0)
    [2, 0]
    """
    result = list(choice)
    rest = budget - _total(fronts, result)[0]
    while True:
        # The most expensive, and so best, option of each layer with c ≤ c_k + rest.
        affordable = [
            max(int(np.searchsorted(front.costs, front.costs[k] + rest, side="right")) - 1, k)
            for front, k in zip(fronts, result, strict=True)
        ]
        gains = [
            front.scores[k] - front.scores[new]
            for front, k, new in zip(fronts, result, affordable, strict=True)
        ]
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            return result
        costs = fronts[best].costs
        rest -= float(costs[affordable[best]] - costs[result[best]])
        result[best] = affordable[best]


def _total(fronts: Sequence[Front], choice: Sequence[int]) -> tuple[float, float]:
    """Return the total cost and the total score of a choice."""
    pairs = list(zip(fronts, choice, strict=True))
    return (
        sum(float(front.costs[k]) for front, k in pairs),
        sum(float(front.scores[k]) for front, k in pairs),
    )


def _relax(fronts: Sequence[Front], budget: float) -> tuple[list[int], float]:
    """Return the choice after all steps along the convex hulls that fit, and the price of cost.

    The steps are taken in order of falling slope. The price is the slope of the first step that
    does not fit, or 0 where all steps fit.
    """
    hulls = [_convex_hull(front) for front in fronts]
    # For every step of every hull: its layer, the option it leads to, Δc > 0 and −Δs > 0.
    layers = np.repeat(np.arange(len(hulls)), [len(hull) - 1 for hull in hulls])
    ends = np.concatenate([hull[1:] for hull in hulls])
    added = np.concatenate([np.diff(f.costs[h]) for f, h in zip(fronts, hulls, strict=True)])
    gained = np.concatenate([-np.diff(f.scores[h]) for f, h in zip(fronts, hulls, strict=True)])
    # By falling slope −Δs/Δc; the sort is stable, so that the steps of a hull stay in order.
    order = np.argsort(-gained / added, kind="stable")
    cheapest = sum(float(front.costs[0]) for front in fronts)
    spent = cheapest + np.cumsum(added[order])
    fitting = int(np.searchsorted(spent, budget, side="right"))
    choice = [0] * len(fronts)
    for step in order[:fitting]:
        choice[layers[step]] = int(ends[step])
    if fitting == len(order):
        return choice, 0.0
    return choice, float(gained[order[fitting]] / added[order[fitting]])


def _convex_hull(front: Front) -> Ints:
    """Return the indexes of the options on the lower convex hull, cheapest first."""
    hull: list[int] = []
    costs, scores = front.costs.tolist(), front.scores.tolist()
    for k in range(len(costs)):
        while len(hull) > 1:
            # b stays if it lies below the line from a to k: (s_b − s_a)/(c_b − c_a) is smaller than
            # (s_k − s_a)/(c_k − c_a).
            a, b = hull[-2:]
            rise = (scores[b] - scores[a]) * (costs[k] - costs[a])
            if rise < (scores[k] - scores[a]) * (costs[b] - costs[a]):
                break
            hull.pop()
        hull.append(k)
    return np.array(hull, dtype=np.intp)


@dataclass(frozen=True)
class _States:
    """Partial choices, of options for the first layers.

    Attributes
    ----------
    costs, losses : array
        Total cost and loss of each state, of shape (states,).
    parents, options : array
        The state of one layer fewer, and the option added to it, of shape (states,).
    """

    costs: Floats
    losses: Floats
    parents: Ints
    options: Ints


def _improve(
    fronts: Sequence[Front], losses: Sequence[Floats], budget: float, price: float, gap: float
) -> list[int] | None:
    """Return the best choice of a dynamic programming within a gap, or None if there is none.

    Parameters
    ----------
    fronts : sequence of Front
        One front for each layer.
    losses : sequence of array
        For each option its loss s + λc − min(s + λc), of the shape of the front.
    budget : float
        Upper bound on the total cost.
    price : float
        The price λ of cost.
    gap : float
        The distance of the best known score from the lower bound. Any score exceeds the bound by
        the total loss plus λ times the unspent budget, so a larger sum cannot give a better choice.
    """
    gap *= 1 + 1e-9
    candidates = [np.flatnonzero(loss <= gap) for loss in losses]
    # The least and the largest total cost of the layers that follow each layer.
    least = np.array([front.costs[k[0]] for front, k in zip(fronts, candidates, strict=True)])
    most = np.array([front.costs[k[-1]] for front, k in zip(fronts, candidates, strict=True)])
    least_after = np.append(np.cumsum(least[::-1])[::-1], 0.0)
    most_after = np.append(np.cumsum(most[::-1])[::-1], 0.0)
    start = np.zeros(1, dtype=np.intp)
    history = [_States(np.zeros(1), np.zeros(1), start, start)]
    for layer, (front, loss, options) in enumerate(zip(fronts, losses, candidates, strict=True)):
        # Every state with every option, as one array of shape (states·options,).
        last = history[-1]
        costs = (last.costs[:, None] + front.costs[options]).ravel()
        sums = (last.losses[:, None] + loss[options]).ravel()
        # Keep what can still fit the budget and stay within the gap.
        unspent = np.maximum(budget - costs - most_after[layer + 1], 0.0)
        feasible = (costs <= budget - least_after[layer + 1]) & (sums + price * unspent <= gap)
        indices = np.flatnonzero(feasible)
        # Without the price of cost, losses are scores up to a constant: s = loss − λc.
        indices = indices[_pareto_states(costs[indices], sums[indices] - price * costs[indices])]
        if not len(indices):
            return None
        parents, option = np.divmod(indices, len(options))
        history.append(_States(costs[indices], sums[indices], parents, options[option]))
    return _trace_back(history, price)


def _pareto_states(costs: Floats, scores: Floats) -> Ints:
    """Return the states that no other beats, cheapest first and at most about `STATES`."""
    # In order of cost, a state is on the front where the least score so far falls.
    order: Ints = np.lexsort((scores, costs))
    least = np.minimum.accumulate(scores[order])
    order = order[_is_change(least)]
    if len(order) > STATES:
        # Divide the range of the scores into `STATES` intervals and keep the cheapest in each.
        front = scores[order]
        order = order[_is_change(np.floor((front[0] - front) * (STATES / (front[0] - front[-1]))))]
    return order


def _is_change(values: Floats) -> NDArray[np.bool_]:
    """Return where a value differs from the one before it, the first value included."""
    changes: NDArray[np.bool_] = np.diff(values, prepend=np.nan) != 0
    return changes


def _trace_back(history: Sequence[_States], price: float) -> list[int]:
    """Return the options that lead to the last state of the least score."""
    last = history[-1]
    index = int(np.argmin(last.losses - price * last.costs))
    choice = []
    for states in history[:0:-1]:
        choice.append(int(states.options[index]))
        index = int(states.parents[index])
    return choice[::-1]
