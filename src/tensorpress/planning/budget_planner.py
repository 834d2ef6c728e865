"""Planning within a budget of parameters, bytes, MACs or measured latency."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.latency import measure_latencies
from tensorpress.planning.budget import Budget
from tensorpress.planning.budget_rules import Spreading, Task, Ways, make_choices
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.latency_search import fit_latency
from tensorpress.planning.layer_candidates import applicable_schemes, plan_with_ranks
from tensorpress.planning.layer_latency import LayerTimer, fill_randomly
from tensorpress.planning.layers import Layer
from tensorpress.planning.scores import Scores
from tensorpress.ranks import FractionRanks
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.registry import scheme as scheme_named

LEAST_SHARE = 0.01
"""Of the dense model's time that is predicted: timings of single layers may add up to more."""


def plan_within_latency(
    limit: Budget,
    dense: DenseModel,
    ways: Ways,
    fixed: Mapping[str, LayerPlan],
    rule: str | Scores,
    round_to: int,
) -> Spreading:
    """Spread the time of a forward pass, as measured here and now.

    The layers are timed dense and pressed (`tensorpress.planning.layer_latency`); what is spread is
    the sum of these times. Whole models are then built and timed until one meets the budget
    (`tensorpress.planning.latency_search`). A layer that pressing makes slower stays dense.

    Parameters
    ----------
    limit, dense, ways, fixed, rule, round_to
        As for `tensorpress.planning.budget_planner.plan_within_budget`.

    Raises
    ------
    InvalidArgumentError
        For a budget that cannot be reached, or a model on the meta device.
    """
    timer = LayerTimer(next(dense.module.parameters()), dense.inputs, round_to=round_to)

    def cost(plan: LayerPlan) -> float:
        shapes = dense.layers[plan.name].inputs
        return timer.time_pressed(plan.method, plan.spec, [plan.ranks], shapes)[0]

    def dense_cost(name: str) -> float:
        layer = dense.layers[name]
        return timer.time_dense(layer.spec(), layer.inputs)

    replaced = [layer for layer in fixed.values() if layer.calls]
    task = Task(ways, cost, {name: dense_cost(name) for name in ways}, round_to)
    choices = make_choices(task, rule)
    whole = measure_latencies([dense.module], dense.inputs)[0]
    saved = sum(dense_cost(plan.name) - cost(plan) for plan in replaced)
    others = whole - saved - sum(task.dense.values())

    def chosen(share: float) -> dict[str, LayerPlan]:
        return choices.choose(max(share * whole - others, choices.least_cost))

    fitted = fit_latency(
        lambda share: _build_random(dense, [*replaced, *chosen(share).values()]),
        dense.module,
        dense.inputs,
        limit.amount,
        relative=limit.relative,
        lowest=max((others + choices.least_cost) / whole, LEAST_SHARE),
    )
    return chosen(fitted.at), choices


def _build_random(dense: DenseModel, plans: list[LayerPlan]) -> nn.Module:
    """Return the pressed model, at random values."""
    new: dict[int, nn.Module] = {}
    for plan in plans:
        layer = dense.layers[plan.name].module
        pressed = plan.method.skeleton(plan.spec, plan.ranks, like=layer.get_parameter("weight"))
        fill_randomly(pressed)
        new[id(layer)] = pressed.train(layer.training)
    return deepcopy(dense.module, new)


UNITS = {"params": "parameters", "bytes": "bytes", "macs": "MACs"}


def plan_within_budget(
    limit: Budget,
    dense: DenseModel,
    layers: Mapping[str, Layer],
    schemes: Mapping[str, Sequence[str]],
    fixed: Mapping[str, LayerPlan],
    rule: str | Scores,
    round_to: int,
) -> tuple[dict[str, LayerPlan], dict[str, str]]:
    """Choose schemes and ranks so that the whole model stays within a budget.

    Parameters
    ----------
    limit : Budget
        Of the whole model.
    dense : DenseModel
        The model.
    layers : mapping of str to Layer
        Those that may be pressed.
    schemes : mapping of str to sequence of str
        What each of them may be pressed by.
    fixed : mapping of str to LayerPlan
        Layers that are pressed in any case.
    rule : str or Scores
        How the budget is spread: see `tensorpress.plan`.
    round_to : int
        Ranks are multiples of it.

    Returns
    -------
    dict of str to LayerPlan, dict of str to str
        The layers that are pressed, and the others with the reason.

    Raises
    ------
    InvalidArgumentError
        For a budget out of reach (with what can be reached) or one that the dense model meets; a
        budget of MACs or latency without inputs; an unknown rule.
    """
    ways: Ways = {}
    unpressed: dict[str, str] = {}
    for name, layer in layers.items():
        found, reason = applicable_schemes(layer, [scheme_named(s) for s in schemes[name]])
        if found:
            ways[name] = layer, found
        else:
            unpressed[name] = reason
    if limit.kind != "params" and limit.kind != "bytes" and not dense.inputs:
        raise InvalidArgumentError(f"a budget of {limit.kind} needs example inputs")
    spread = plan_within_latency if limit.kind == "latency" else _plan_within_count
    pressed, choices = spread(limit, dense, ways, fixed, rule, round_to)
    unpressed |= {name: choices.explain_dense(name) for name in ways if name not in pressed}
    return dict(pressed), unpressed


def _plan_within_count(
    limit: Budget,
    dense: DenseModel,
    ways: Ways,
    fixed: Mapping[str, LayerPlan],
    rule: str | Scores,
    round_to: int,
) -> Spreading:
    """Spread a budget of what is known exactly."""
    total = {"params": dense.params, "bytes": dense.bytes, "macs": dense.macs}[limit.kind]
    assert total is not None
    amount = limit.resolve(total)
    if amount >= total:
        raise InvalidArgumentError(
            f"the budget {limit} is no saving: the dense model has {total:,} {UNITS[limit.kind]}"
        )

    def cost(layer: LayerPlan) -> float:
        if limit.kind == "macs":
            return layer.macs
        return layer.factor_params * (layer.itemsize if limit.kind == "bytes" else 1)

    def dense_cost(layer: LayerPlan) -> float:
        if limit.kind == "macs":
            return layer.dense_macs
        return layer.dense_params * (layer.itemsize if limit.kind == "bytes" else 1)

    smallest = {
        name: plan_with_ranks(layer, schemes[0], FractionRanks(1e-9))
        for name, (layer, schemes) in ways.items()
    }
    task = Task(ways, cost, {name: dense_cost(x) for name, x in smallest.items()}, round_to)
    choices = make_choices(task, rule)
    # With a core that fixed layers share, which is the cost of no one of them.
    with_fixed = getattr(dense.plan("", list(fixed.values()), {}), limit.kind)
    others = with_fixed - sum(task.dense.values())
    least = others + choices.least_cost
    if least > amount:
        raise InvalidArgumentError(
            f"the budget {limit} is out of reach: with all that may be pressed at the smallest "
            f"ranks the model has {least:,.0f} of {total:,} {UNITS[limit.kind]}"
        )
    return choices.choose(amount - others), choices
