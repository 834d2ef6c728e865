"""The candidate ranks whose loss is measured, and the scores of those between them."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.layer_candidates import applicable_schemes, candidate_plans
from tensorpress.planning.layers import Layer
from tensorpress.planning.scores import Scored
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.registry import scheme as scheme_named

Group = list[LayerPlan]
"""Choices for one layer by one scheme, those of few parameters first."""


def make_candidates(layers: Mapping[str, Layer], schemes: Sequence[str], count: int) -> list[Group]:
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
            plans = candidate_plans(layer, applicable_schemes(layer, named)[0])
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"layer {name!r}: {error}") from None
        by_scheme = [[plan for plan in plans if plan.scheme == scheme] for scheme in schemes]
        found += [_select_evenly(alike, count) for alike in by_scheme]
    return [group for group in found if group]


def _select_evenly(plans: Sequence[LayerPlan], count: int) -> Group:
    """Return the plans of least error within equal steps of the parameters."""
    best_first = sorted(plans, key=lambda plan: plan.error or 0.0)
    picked: dict[tuple[int, ...], LayerPlan] = {}
    for step in range(1, count + 1):
        within = (p for p in best_first if p.factor_params * (count + 1) <= p.dense_params * step)
        best = next(within, None)
        if best is not None:
            picked[best.ranks] = best
    return sorted(picked.values(), key=lambda plan: plan.factor_params)


def job_name(choice: LayerPlan) -> str:
    """Return the name of the job that measures a choice."""
    return f"{choice.name}|{choice.scheme}|{'x'.join(map(str, choice.ranks))}"


def measuring_order(groups: Sequence[Group], estimates: Mapping[str, float]) -> list[LayerPlan]:
    """Return the choices in the order in which measuring them tells most.

    First the middle one of every group, then those that halve the largest gaps; of each round the
    groups of which most is lost by estimate first. So what is measured is spread over the model and
    over the ranks whenever it is stopped.

    Examples
    --------
    >>> bisection_order(7)
    [3, 1, 5, 0, 2, 4, 6]
    """
    rounds = [
        (turn, -estimates[job_name(group[place])], job_name(group[place]), group[place])
        for group in groups
        for turn, place in enumerate(bisection_order(len(group)))
    ]
    return [choice for *_, choice in sorted(rounds, key=lambda entry: entry[:3])]


def bisection_order(count: int) -> list[int]:
    """Return 0 … count − 1, the middle first, then the middles of what is between."""
    order, spans = [], [(0, count)]
    for low, high in spans:
        if low < high:
            middle = (low + high) // 2
            order.append(middle)
            spans += [(low, middle), (middle + 1, high)]
    return order


LEAST = 0.5
"""Of what is expected, what a measurement counts for at least."""


def fill_scores(
    groups: Sequence[Group], measured: Mapping[str, float], estimated: Mapping[str, float]
) -> dict[str, tuple[Scored, ...]]:
    """Return the scores of all choices by layer.

    What is not measured is its estimate times a ratio of what was measured to what was estimated:
    that over the whole model; where the layer and scheme have measurements, the mean of it and
    theirs, because few measurements say only so much; 1 where there are none at all.

    What is measured counts for at least half of its estimate times the ratio over the model: of
    many measurements on a few examples some show no loss at all by chance, and a plan would take
    just these.

    Parameters
    ----------
    groups : sequence of Group
        The choices.
    measured : mapping of str to float
        Increase of the metric, by job.
    estimated : mapping of str to float
        Of all jobs, in any unit.
    """
    overall = _ratio(groups, measured, estimated)
    scores: dict[str, tuple[Scored, ...]] = {}
    for group in groups:
        ratios = (overall, _ratio([group], measured, estimated))
        ratio = fmean([found for found in ratios if found is not None] or [1.0])
        layer = group[0].name
        scores[layer] = scores.get(layer, ()) + tuple(
            _measured(
                choice, measured[job_name(choice)], (overall or 0.0) * estimated[job_name(choice)]
            )
            if job_name(choice) in measured
            else Scored(choice.scheme, choice.ranks, ratio * estimated[job_name(choice)], False)
            for choice in group
        )
    return scores


def _measured(choice: LayerPlan, increase: float, expected: float) -> Scored:
    score = max(increase, LEAST * expected)
    return Scored(choice.scheme, choice.ranks, score, True, increase)


def _ratio(
    groups: Sequence[Group], measured: Mapping[str, float], estimated: Mapping[str, float]
) -> float | None:
    """Return by how much more was measured than estimated, None where nothing says."""
    jobs = [
        job_name(choice) for group in groups for choice in group if job_name(choice) in measured
    ]
    expected = sum(estimated[name] for name in jobs)
    return sum(max(measured[name], 0.0) for name in jobs) / expected if expected else None
