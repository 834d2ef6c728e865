"""Divides a budget among the layers of a model, one option per layer."""

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
    """One option for a layer: pressed to some ranks, or left dense.

    Attributes
    ----------
    cost : float
        Cost in the unit of the budget; not negative.
    score : float
        Loss in quality; lower is better.
    """

    cost: float
    score: float


def allocate(
    layers: Sequence[Sequence[Option]], budget: float, *, method: Allocation = "total"
) -> list[int]:
    """Return one option for each layer so that the total cost is within a budget.

    Parameters
    ----------
    layers : sequence of sequence of Option
        The options of each layer in any order, including the dense layer where that is allowed.
    budget : float
        Upper bound on the total cost, in the unit of the costs.
    method : {"total", "greedy", "worst"}
        "total" minimizes the sum of the scores, as nearly as
        `tensorpress.ranks.knapsack.minimize_total` does. "greedy" starts from the best option of
        each layer. Step by step, it moves the layer with the least loss per saved cost to its next
        cheaper option. With scores −ln E for the PCA energy E of a layer, that is the method of
        Zhang et al., who maximize the product of the energies. "worst" minimizes the largest score:
        every layer gets its cheapest option below a threshold. "greedy" and "worst" spend the rest
        of the budget on better options, the greatest gain first.

    Returns
    -------
    list of int
        The index of an option for each layer. The total cost never exceeds the budget, up to the
        rounding of sums.

    Raises
    ------
    InvalidArgumentError
        If the budget is below the cost of the cheapest options, which the message states; a layer
        has no options; a cost is negative; a number is not finite; or the method is unknown.

    References
    ----------
    Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification
    and detection", "Rank selection for whole-model acceleration", for the criterion (ΔE/E)/ΔC. For
    steps of more than one component, −Δ ln E / ΔC is its exact form.

    Examples
    --------
    >>> dense, half, tiny = Option(10.0, 0.0), Option(5.0, 0.1), Option(1.0, 0.6)
    >>> allocate([[dense, half, tiny], [dense, half]], 15.0)
    [0, 1]
    >>> allocate([[dense, half, tiny], [dense, half]], 5.0)
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: the budget of 5 is below the least reachable cost, 6
    """
    if method not in get_args(Allocation):
        raise unknown_name("allocation", method, get_args(Allocation))
    indices = [pareto(options) for options in layers]
    fronts = [
        Front(
            np.array([float(options[k].cost) for k in front]),
            np.array([float(options[k].score) for k in front]),
        )
        for options, front in zip(layers, indices, strict=True)
    ]
    least = sum(float(front.costs[0]) for front in fronts)
    if not least <= budget:
        raise InvalidArgumentError(
            f"the budget of {budget:,.12g} is below the least reachable cost, {least:,.12g}"
        )
    if not fronts:
        return []
    methods = {"total": minimize_total, "greedy": _step_down, "worst": _minimize_worst}
    choice = methods[method](fronts, budget)
    return [front[k] for front, k in zip(indices, choice, strict=True)]


def pareto(options: Sequence[Option]) -> list[int]:
    """Return the indexes of the options on the Pareto front, cheapest and therefore worst first.

    Of equal options, only the first is on the front.

    Raises
    ------
    InvalidArgumentError
        If there are no options, a cost is negative, or a number is not finite.

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
    front: list[int] = []
    for index in sorted(range(len(options)), key=lambda k: (options[k].cost, options[k].score)):
        if not front or options[index].score < options[front[-1]].score:
            front.append(index)
    return front


def _step_down(fronts: Sequence[Front], budget: float) -> list[int]:
    """Step down from the best options, least loss per saving first, until the budget suffices."""
    choice = [len(front.costs) - 1 for front in fronts]
    cost = sum(float(front.costs[-1]) for front in fronts)
    # The loss per saving of the step from option k to k − 1 of a layer: −Δs / Δc.
    slopes = [-np.diff(front.scores) / np.diff(front.costs) for front in fronts]
    steps = [(float(slope[-1]), layer) for layer, slope in enumerate(slopes) if len(slope)]
    heapify(steps)
    while cost > budget and steps:
        # Take the cheapest step of all layers; the next step of that layer takes its place.
        layer = heappop(steps)[1]
        choice[layer] -= 1
        k = choice[layer]
        cost -= float(fronts[layer].costs[k + 1] - fronts[layer].costs[k])
        if k:
            heappush(steps, (float(slopes[layer][k - 1]), layer))
    return spend_rest(fronts, choice, budget)


def _minimize_worst(fronts: Sequence[Front], budget: float) -> list[int]:
    """Bisect the lowest threshold whose cheapest options fit the budget."""

    def cheapest_below(threshold: float) -> list[int]:
        return [int(np.argmax(front.scores <= threshold)) for front in fronts]

    # No threshold is below the best score of some layer; every other one is a score.
    lowest = max(float(front.scores[-1]) for front in fronts)
    scores = np.unique(np.concatenate([front.scores for front in fronts]))
    scores = scores[scores >= lowest]
    low, high = 0, len(scores) - 1  # at the highest, every layer takes its cheapest option
    while low < high:
        middle = (low + high) // 2
        choice = cheapest_below(scores[middle])
        cost = sum(float(front.costs[k]) for front, k in zip(fronts, choice, strict=True))
        low, high = (low, middle) if cost <= budget else (middle + 1, high)
    return spend_rest(fronts, cheapest_below(scores[low]), budget)
