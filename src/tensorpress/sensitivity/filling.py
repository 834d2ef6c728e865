"""Scores of all choices from those that were measured: the others in proportion to estimates."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from tensorpress.planning.layer_plans import SchemePlan
from tensorpress.planning.scores import Scored
from tensorpress.sensitivity.choices import Group, job

LEAST = 0.5
"""Of what is expected, what a measurement counts for at least."""


def filled(
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
            _measured(choice, measured[job(choice)], (overall or 0.0) * estimated[job(choice)])
            if job(choice) in measured
            else Scored(choice.scheme, choice.ranks, ratio * estimated[job(choice)], False)
            for choice in group
        )
    return scores


def _measured(choice: SchemePlan, increase: float, expected: float) -> Scored:
    score = max(increase, LEAST * expected)
    return Scored(choice.scheme, choice.ranks, score, True, increase)


def _ratio(
    groups: Sequence[Group], measured: Mapping[str, float], estimated: Mapping[str, float]
) -> float | None:
    """Return by how much more was measured than estimated, None where nothing says."""
    jobs = [job(choice) for group in groups for choice in group if job(choice) in measured]
    expected = sum(estimated[name] for name in jobs)
    return sum(max(measured[name], 0.0) for name in jobs) / expected if expected else None
