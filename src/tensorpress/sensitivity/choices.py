"""The choices that are scored: of every layer a few ranks, spread over what they cost."""

from collections.abc import Mapping, Sequence

from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.layer_plans import SchemePlan
from tensorpress.planning.layers import Layer
from tensorpress.planning.options import applicable, options
from tensorpress.schemes.registry import scheme as scheme_named

Group = list[SchemePlan]
"""Choices for one layer by one scheme, those of few parameters first."""


def choices(layers: Mapping[str, Layer], schemes: Sequence[str], count: int) -> list[Group]:
    """Return the choices for every layer and scheme.

    Of the ranks with at most k / (count + 1) of the dense parameters, k from 1 to ``count``, those
    with the least error are taken.

    Parameters
    ----------
    layers : mapping of str to Layer
        By name.
    schemes : sequence of str
        By name; those that cannot take a layer are passed over.
    count : int
        Choices a layer and scheme, at most.

    Raises
    ------
    InvalidArgumentError
        Naming a layer whose weight has NaN or infinite values.
    """
    named = [scheme_named(name) for name in schemes]
    found: list[Group] = []
    for name, layer in layers.items():
        try:
            plans = options(layer, applicable(layer, named)[0])
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"layer {name!r}: {error}") from None
        by_scheme = [[plan for plan in plans if plan.scheme == scheme] for scheme in schemes]
        found += [_spread(alike, count) for alike in by_scheme]
    return [group for group in found if group]


def _spread(plans: Sequence[SchemePlan], count: int) -> Group:
    """Return the plans of least error within equal steps of the parameters."""
    best_first = sorted(plans, key=lambda plan: plan.error or 0.0)
    picked: dict[tuple[int, ...], SchemePlan] = {}
    for step in range(1, count + 1):
        within = (p for p in best_first if p.factor_params * (count + 1) <= p.dense_params * step)
        best = next(within, None)
        if best is not None:
            picked[best.ranks] = best
    return sorted(picked.values(), key=lambda plan: plan.factor_params)


def job(choice: SchemePlan) -> str:
    """Return the name of the job that measures a choice."""
    return f"{choice.name}|{choice.scheme}|{'x'.join(map(str, choice.ranks))}"


def in_turn(groups: Sequence[Group], estimates: Mapping[str, float]) -> list[SchemePlan]:
    """Return the choices in the order in which measuring them tells most.

    First the middle one of every group, then those that halve the largest gaps; of each round the
    groups of which most is lost by estimate first. So what is measured is spread over the model and
    over the ranks whenever it is stopped.

    Examples
    --------
    >>> halving(7)
    [3, 1, 5, 0, 2, 4, 6]
    """
    rounds = [
        (turn, -estimates[job(group[place])], job(group[place]), group[place])
        for group in groups
        for turn, place in enumerate(halving(len(group)))
    ]
    return [choice for *_, choice in sorted(rounds, key=lambda entry: entry[:3])]


def halving(count: int) -> list[int]:
    """Return 0 … count − 1, the middle first, then the middles of what is between."""
    order, spans = [], [(0, count)]
    for low, high in spans:
        if low < high:
            middle = (low + high) // 2
            order.append(middle)
            spans += [(low, middle), (middle + 1, high)]
    return order
