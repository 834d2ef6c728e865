"""Chooses the candidates whose loss is measured, and scores all of them."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.layer_candidates import applicable_schemes, candidate_plans
from tensorpress.planning.layers import Layer
from tensorpress.planning.scores import Scored
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import WEIGHT
from tensorpress.schemes.registry import scheme as scheme_named
from tensorpress.schemes.scheme import Scheme
from tensorpress.utils.module_tree import locate_weight

Group = list[LayerPlan]
"""Plans of one layer by one scheme, fewest parameters first."""


def make_candidates(layers: Mapping[str, Layer], schemes: Sequence[str], count: int) -> list[Group]:
    """Return the candidates for every layer and scheme.

    For k from 1 to ``count``, the candidate is the plan of least error with at most
    k / (count + 1) of the dense parameters.

    Parameters
    ----------
    layers : mapping of str to Layer
        The layers by name.
    schemes : sequence of str
        The names of the schemes. A scheme has no candidates for layers that it cannot press, and
        parameters that can only be rebuilt have none.
    count : int
        Largest number of candidates for each layer and scheme.

    Raises
    ------
    InvalidArgumentError
        If the weight of a layer, which the message names, has NaN or infinite values.
    """
    methods = [scheme_named(name) for name in schemes]
    groups: list[Group] = []
    for name, layer in layers.items():
        if layer.spec().kind == WEIGHT:  # the module gives no response of this weight alone
            continue
        try:
            plans = candidate_plans(layer, applicable_schemes(layer, methods)[0])
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"layer {name!r}: {error}") from None
        by_scheme = [[plan for plan in plans if plan.scheme == scheme] for scheme in schemes]
        groups += [_select_evenly(group, count) for group in by_scheme]
    return [group for group in groups if group]


def response_schemes(
    model: nn.Module, layers: Mapping[str, Layer], scheme: str
) -> dict[str, Scheme]:
    """Return the scheme that truncates the responses of each layer: the one named, or svd_weight.

    svd_weight replaces channel_svd for a Linear that cannot be replaced, or that represents the
    weight of a recurrent layer.

    Parameters
    ----------
    model : nn.Module
        The model, with recurrent layers unrolled (`tensorpress.calibrate.unrolled`).
    layers : mapping of str to Layer
        The layers by name.
    scheme : str
        The name of the scheme.
    """
    method, rebuilt = scheme_named(scheme), scheme_named("svd_weight")
    result = {}
    for name, layer in layers.items():
        if applicable_schemes(layer, [method])[0]:
            result[name] = method
        elif scheme == "channel_svd" and applicable_schemes(layer, [rebuilt])[0]:
            module, key = locate_weight(model, name)
            if key == "weight" and isinstance(module, nn.Linear):
                result[name] = rebuilt
    return result


def _select_evenly(plans: Sequence[LayerPlan], count: int) -> Group:
    """Return the plans of least error within equal steps of the parameters."""
    best_first = sorted(plans, key=lambda plan: plan.error or 0.0)
    selected: dict[tuple[int, ...], LayerPlan] = {}
    for step in range(1, count + 1):
        within = (p for p in best_first if p.factor_params * (count + 1) <= p.dense_params * step)
        best = next(within, None)
        if best is not None:
            selected[best.ranks] = best
    return sorted(selected.values(), key=lambda plan: plan.factor_params)


def job_name(choice: LayerPlan) -> str:
    """Return the name of the job that measures a candidate."""
    return f"{choice.name}|{choice.scheme}|{'x'.join(map(str, choice.ranks))}"


def order_candidates(groups: Sequence[Group], estimates: Mapping[str, float]) -> list[LayerPlan]:
    """Order candidates so that every prefix covers all layers and ranks evenly.

    The middle of every group comes first, then the candidates that halve the largest gaps. Within a
    round the largest estimate comes first.
    """
    rounds = [
        (turn, -estimates[job_name(group[i])], job_name(group[i]), group[i])
        for group in groups
        for turn, i in enumerate(bisection_order(len(group)))
    ]
    return [choice for *_, choice in sorted(rounds, key=lambda entry: entry[:3])]


def bisection_order(count: int) -> list[int]:
    """Return 0 … count − 1: the middle first, then the middles of both halves, and so on.

    Examples
    --------
    >>> bisection_order(7)
    [3, 1, 5, 0, 2, 4, 6]
    """
    order, spans = [], [(0, count)]
    for low, high in spans:
        if low < high:
            middle = (low + high) // 2
            order.append(middle)
            spans += [(low, middle), (middle + 1, high)]
    return order


LEAST = 0.5
"""Smallest score of a measured candidate, relative to its expected loss."""


def fill_scores(
    groups: Sequence[Group], measured: Mapping[str, float], estimated: Mapping[str, float]
) -> dict[str, tuple[Scored, ...]]:
    """Return the scores of all candidates by layer.

    Estimates are scaled by the ratio of measured to estimated losses: that of the whole model,
    averaged with that of the layer and scheme if these were measured, or 1 without measurements.

    The score of a measured candidate is at least half of its estimate times the ratio of the model:
    on few examples some measurements are 0 by chance, and a plan would choose exactly these.

    Parameters
    ----------
    groups : sequence of Group
        The candidates.
    measured : mapping of str to float
        Measured increases of the metric by job.
    estimated : mapping of str to float
        Estimated losses of all jobs, in any unit.
    """
    overall = _ratio(groups, measured, estimated)
    scores: dict[str, list[Scored]] = {}
    for group in groups:
        ratios = (overall, _ratio([group], measured, estimated))
        mean = fmean([ratio for ratio in ratios if ratio is not None] or [1.0])
        for plan in group:
            job = job_name(plan)
            increase = measured.get(job)
            if increase is None:
                score = mean * estimated[job]
            else:
                score = max(increase, LEAST * (overall or 0.0) * estimated[job])
            result = Scored(plan.scheme, plan.ranks, score, increase is not None, increase)
            scores.setdefault(plan.name, []).append(result)
    return {name: tuple(results) for name, results in scores.items()}


def _ratio(
    groups: Sequence[Group], measured: Mapping[str, float], estimated: Mapping[str, float]
) -> float | None:
    """Return the ratio of measured to estimated losses, or None without measurements."""
    jobs = [job for group in groups for plan in group if (job := job_name(plan)) in measured]
    expected = sum(estimated[job] for job in jobs)
    return sum(max(measured[job], 0.0) for job in jobs) / expected if expected else None
