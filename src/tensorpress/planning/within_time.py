"""Planning within a budget of measured latency."""

from collections.abc import Mapping
from copy import deepcopy

from torch import nn

from tensorpress.measure.fit_latency import fit_latency
from tensorpress.measure.latency import latencies
from tensorpress.planning.budget import Budget
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layer_plans import PlannedLayer, SchemePlan
from tensorpress.planning.scores import Scores
from tensorpress.planning.spread import Spreading, Task, Ways, choices
from tensorpress.planning.timing import LayerTimer, fill_randomly
from tensorpress.schemes.registry import scheme as scheme_named

LEAST_SHARE = 0.01
"""Of the dense model's time that is predicted: timings of single layers may add up to more."""


def within_time(
    limit: Budget,
    dense: DenseModel,
    ways: Ways,
    fixed: Mapping[str, PlannedLayer],
    rule: str | Scores,
    round_to: int,
) -> Spreading:
    """Spread the time of a forward pass, as measured here and now.

    The layers are timed dense and pressed (`tensorpress.planning.timing`); what is spread is
    the sum of these times. Whole models are then built and timed until one meets the budget
    (`tensorpress.measure.fit_latency`). A layer that pressing makes slower stays dense.

    Parameters
    ----------
    limit, dense, ways, fixed, rule, round_to
        As for `tensorpress.planning.within.within`.

    Raises
    ------
    InvalidArgumentError
        For a budget that cannot be reached, or a model on the meta device.
    """
    timer = LayerTimer(next(dense.module.parameters()), dense.inputs, round_to=round_to)

    def cost(plan: SchemePlan) -> float:
        shapes = dense.layers[plan.name].inputs
        return timer.pressed(scheme_named(plan.scheme), plan.spec, [plan.ranks], shapes)[0]

    def dense_cost(name: str) -> float:
        layer = dense.layers[name]
        return timer.dense(layer.spec(), layer.inputs)

    replaced = [layer for layer in fixed.values() if isinstance(layer, SchemePlan)]
    task = Task(ways, cost, {name: dense_cost(name) for name in ways}, round_to)
    found = choices(task, rule)
    whole = latencies([dense.module], dense.inputs)[0]
    saved = sum(dense_cost(plan.name) - cost(plan) for plan in replaced)
    others = whole - saved - sum(task.dense.values())

    def chosen(share: float) -> dict[str, SchemePlan]:
        return found.within(max(share * whole - others, found.least))

    fitted = fit_latency(
        lambda share: _built(dense, [*replaced, *chosen(share).values()]),
        dense.module,
        dense.inputs,
        limit.amount,
        relative=limit.relative,
        lowest=max((others + found.least) / whole, LEAST_SHARE),
    )
    return chosen(fitted.at), found


def _built(dense: DenseModel, plans: list[SchemePlan]) -> nn.Module:
    """Return the pressed model, at random values."""
    new: dict[int, nn.Module] = {}
    for plan in plans:
        layer = dense.layers[plan.name].module
        scheme = scheme_named(plan.scheme)
        pressed = scheme.skeleton(plan.spec, plan.ranks, like=layer.get_parameter("weight"))
        fill_randomly(pressed)
        new[id(layer)] = pressed.train(layer.training)
    return deepcopy(dense.module, new)
