"""Spreading a budget over the layers of a model: which option each of them gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import isfinite
from typing import Literal, get_args

import numpy as np

from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.ranks.knapsack import Front, minimize_total, spend_rest

Allocation = Literal["total", "greedy", "worst"]


@dataclass(frozen=True)
class Option:
    """One way to treat a layer.

    Attributes
    ----------
    cost : float
        What it takes of the budget; not negative.
    score : float
        What is lost by it: lower is better.
    """

    cost: float
    score: float


def allocate(
    layers: Sequence[Sequence[Option]], budget: float, *, by: Allocation = "total"
) -> list[int]:
    """Return the index of the option that each layer gets within a budget.

    Parameters
    ----------
    layers : sequence of sequence of Option
        The options of every layer in any order, that of leaving it dense among them.
    budget : float
        Of the costs of all layers together, in their unit.
    by : {"total", "greedy", "worst"}
        "total" has the least sum of scores (`tensorpress.ranks.knapsack` says how nearly).
        "greedy" starts from the best option of every layer and moves, step by step, the layer that
        loses least for the cost it saves to its next cheaper option. With scores −ln of the kept
        PCA energy that is the method of Zhang et al., who maximize the product of the energies.
        "worst" has the smallest largest score: every layer gets its cheapest option that is no
        worse than a threshold. What "greedy" and "worst" leave of the budget buys better options,
        the greatest gain first.

    Returns
    -------
    list of int
        One index a layer. The costs together never exceed the budget, up to the rounding of sums.

    Raises
    ------
    InvalidArgumentError
        For a budget below the cost of the cheapest options, which the message names; a layer
        without options; costs that are negative; numbers that are not finite; an unknown way.

    References
    ----------
    Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification
    and detection", "Rank selection for whole-model acceleration": the criterion
    (ΔE/E)/ΔC, of which −Δ ln E / ΔC is the exact form for steps of more than one component.

    Examples
    --------
    >>> dense, half, tiny = Option(10.0, 0.0), Option(5.0, 0.1), Option(1.0, 0.6)
    >>> allocate([[dense, half, tiny], [dense, half]], 15.0)
    [0, 1]
    >>> allocate([[dense, half, tiny], [dense, half]], 5.0)
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: the budget of 5 is below the least reachable cost, 6
    """
    if by not in get_args(Allocation):
        raise unknown_name("allocation", by, get_args(Allocation))
    found = [pareto(options) for options in layers]
    fronts = [_front(options, kept) for options, kept in zip(layers, found, strict=True)]
    least = sum(float(front.costs[0]) for front in fronts)
    if not least <= budget:
        raise InvalidArgumentError(
            f"the budget of {budget:,.12g} is below the least reachable cost, {least:,.12g}"
        )
    if not fronts:
        return []
    way = {"total": minimize_total, "greedy": _greedy, "worst": _least_worst}[by]
    return [kept[k] for kept, k in zip(found, way(fronts, budget), strict=True)]


def pareto(options: Sequence[Option]) -> list[int]:
    """Return the indexes of the options that no other beats, cheapest and so worst first.

    Of equal options only the first is among them.

    Raises
    ------
    InvalidArgumentError
        For no options, negative costs, or numbers that are not finite.

    Examples
    --------
    >>> pareto([Option(4, 0.0), Option(2, 0.5), Option(3, 0.5), Option(1, 0.9)])
    [3, 1, 0]
    """
    if not options:
        raise InvalidArgumentError("a layer has no options")
    for option in options:
        if not (isfinite(option.cost) and isfinite(option.score) and option.cost >= 0):
            raise InvalidArgumentError(
                f"costs must be finite and not negative, and scores finite, got {option}"
            )
    found: list[int] = []
    for index in sorted(range(len(options)), key=lambda k: (options[k].cost, options[k].score)):
        if not found or options[index].score < options[found[-1]].score:
            found.append(index)
    return found


def _front(options: Sequence[Option], kept: Sequence[int]) -> Front:
    return Front(
        np.array([float(options[k].cost) for k in kept]),
        np.array([float(options[k].score) for k in kept]),
    )


def _greedy(fronts: Sequence[Front], budget: float) -> list[int]:
    """Step down from the best options, least loss for the saving first, until all fit."""
    chosen = [len(front.costs) - 1 for front in fronts]
    cost = sum(float(front.costs[-1]) for front in fronts)
    # What each step down loses for its saving: of the layer, from the option k to k − 1.
    slopes = [-np.diff(front.scores) / np.diff(front.costs) for front in fronts]
    steps = [(float(slope[-1]), layer) for layer, slope in enumerate(slopes) if len(slope)]
    heapify(steps)
    while cost > budget and steps:
        layer = heappop(steps)[1]
        chosen[layer] -= 1
        k = chosen[layer]
        cost -= float(fronts[layer].costs[k + 1] - fronts[layer].costs[k])
        if k:
            heappush(steps, (float(slopes[layer][k - 1]), layer))
    return spend_rest(fronts, chosen, budget)


def _least_worst(fronts: Sequence[Front], budget: float) -> list[int]:
    """Find the lowest threshold at which the cheapest options that meet it fit, by bisection."""

    def at(threshold: float) -> list[int]:
        return [int(np.argmax(front.scores <= threshold)) for front in fronts]

    lowest = max(float(front.scores[-1]) for front in fronts)
    scores = np.unique(np.concatenate([front.scores for front in fronts]))
    scores = scores[scores >= lowest]
    low, high = 0, len(scores) - 1  # at the highest, every layer takes its cheapest option
    while low < high:
        middle = (low + high) // 2
        chosen = at(scores[middle])
        cost = sum(float(front.costs[k]) for front, k in zip(fronts, chosen, strict=True))
        low, high = (low, middle) if cost <= budget else (middle + 1, high)
    return spend_rest(fronts, at(scores[low]), budget)
