"""Planning within a budget of parameters, bytes, MACs or measured latency."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.latency import measure_latencies
from tensorpress.planning.budget import Budget
from tensorpress.planning.budget_rules import Allotment, LayerSchemes, Task, make_choices
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.latency_search import fit_latency
from tensorpress.planning.layer_candidates import applicable_schemes, plan_with_ranks
from tensorpress.planning.layer_latency import LayerTimer, fill_randomly
from tensorpress.planning.layers import Layer
from tensorpress.planning.scores import Scores
from tensorpress.ranks import FractionRanks
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import WEIGHT
from tensorpress.schemes.registry import scheme as scheme_named

LEAST_SHARE = 0.01
"""Smallest predicted share of the dense model's time: single layers may add up to more than it."""

LARGEST = 3
"""Number of parameters that an error names."""

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
        The budget of the whole model.
    dense : DenseModel
        The model.
    layers : mapping of str to Layer
        The layers that may be pressed.
    schemes : mapping of str to sequence of str
        The schemes that may press each of them.
    fixed : mapping of str to LayerPlan
        Layers that are pressed in any case.
    rule : str or Scores
        The allocation of the budget: see `tensorpress.plan`.
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
    candidates: LayerSchemes = {}
    unpressed: dict[str, str] = {}
    for name, layer in layers.items():
        usable, reason = applicable_schemes(layer, [scheme_named(s) for s in schemes[name]])
        if usable and limit.kind in ("macs", "latency") and layer.spec().kind == WEIGHT:
            unpressed[name] = f"rebuilding its weight saves no {UNITS[limit.kind]}"
        elif usable:
            candidates[name] = layer, usable
        else:
            unpressed[name] = reason
    if limit.kind in ("macs", "latency") and dense.inputs is None:
        raise InvalidArgumentError(f"a budget of {limit.kind} needs example inputs")
    allot = _allot_latency if limit.kind == "latency" else _allot_count
    pressed, choices = allot(limit, dense, candidates, fixed, rule, round_to)
    unpressed |= {name: choices.explain_dense(name) for name in candidates if name not in pressed}
    return pressed, unpressed


def _allot_count(
    limit: Budget,
    dense: DenseModel,
    candidates: LayerSchemes,
    fixed: Mapping[str, LayerPlan],
    rule: str | Scores,
    round_to: int,
) -> Allotment:
    """Divide a budget of parameters, bytes or MACs, which are known exactly."""
    total = {"params": dense.params, "bytes": dense.bytes, "macs": dense.macs}[limit.kind]
    assert total is not None
    amount = limit.resolve(total)
    if amount >= total:
        raise InvalidArgumentError(
            f"the budget {limit} is no saving: the dense model has {total:,} {UNITS[limit.kind]}"
        )

    def costs(plan: LayerPlan) -> tuple[int, int]:
        if limit.kind == "macs":
            return plan.macs, plan.dense_macs
        unit = plan.itemsize if limit.kind == "bytes" else 1
        return unit * plan.factor_params, unit * plan.dense_params

    smallest = {
        name: plan_with_ranks(layer, schemes[0], FractionRanks(1e-9))
        for name, (layer, schemes) in candidates.items()
    }
    dense_costs = {name: float(costs(plan)[1]) for name, plan in smallest.items()}
    choices = make_choices(
        Task(candidates, lambda plan: costs(plan)[0], dense_costs, round_to), rule
    )
    # A core that fixed layers share counts once, in the sum of all.
    with_fixed = getattr(dense.plan("", list(fixed.values()), {}), limit.kind)
    others = with_fixed - sum(dense_costs.values())
    least = others + choices.least_cost
    if least > amount:
        raise InvalidArgumentError(
            f"the budget {limit} is out of reach: with all that may be pressed at the smallest "
            f"ranks the model has {least:,.0f} of {total:,} {UNITS[limit.kind]}"
            f"{_name_largest(dense, [*candidates, *fixed])}"
        )
    return choices.choose(amount - others), choices


def _name_largest(dense: DenseModel, pressed: Sequence[str]) -> str:
    """Return a clause that names the largest parameters that stay dense."""
    factors = {id(dense.layers[name].weight) for name in pressed}
    rest = {
        name: parameter.numel()
        for name, parameter in dense.module.named_parameters()
        if id(parameter) not in factors
    }
    largest = sorted(rest, key=lambda name: -rest[name])[:LARGEST]
    named = ", ".join(f"{name} ({rest[name]:,} parameters)" for name in largest)
    return f"; the largest that stay dense are {named}" if named else ""


def _allot_latency(
    limit: Budget,
    dense: DenseModel,
    candidates: LayerSchemes,
    fixed: Mapping[str, LayerPlan],
    rule: str | Scores,
    round_to: int,
) -> Allotment:
    """Divide the time of a forward pass, as measured here and now.

    Dense and pressed layers are timed one by one, and the sum of these times is divided. Whole
    models are then built and timed until one meets the budget. A layer that pressing makes slower
    stays dense.
    """
    assert dense.inputs is not None
    like = next(dense.module.parameters())
    timer = LayerTimer(like, dense.inputs.tensors, round_to=round_to)

    def cost(plan: LayerPlan) -> float:
        shapes = dense.layers[plan.name].inputs
        return timer.time_pressed(plan.method, plan.spec, [plan.ranks], shapes)[0]

    def dense_cost(name: str) -> float:
        layer = dense.layers[name]
        return timer.time_dense(layer.spec(), layer.inputs)

    replaced = [layer for layer in fixed.values() if layer.calls]
    task = Task(candidates, cost, {name: dense_cost(name) for name in candidates}, round_to)
    choices = make_choices(task, rule)
    dense_time = measure_latencies([dense.module], dense.inputs)[0]
    saved = sum(dense_cost(plan.name) - cost(plan) for plan in replaced)
    others = dense_time - saved - sum(task.dense.values())

    def choose(share: float) -> dict[str, LayerPlan]:
        return choices.choose(max(share * dense_time - others, choices.least_cost))

    predicted, _ = fit_latency(
        lambda share: _build_random(dense, [*replaced, *choose(share).values()]),
        dense.module,
        dense.inputs,
        limit.amount,
        relative=limit.relative,
        lowest=max((others + choices.least_cost) / dense_time, LEAST_SHARE),
    )
    return choose(predicted), choices


def _build_random(dense: DenseModel, plans: list[LayerPlan]) -> nn.Module:
    """Return the pressed model, at random values."""
    replacements: dict[int, nn.Module] = {}
    for plan in plans:
        layer = dense.layers[plan.name].module
        pressed = plan.method.skeleton(plan.spec, plan.ranks, like=layer.get_parameter("weight"))
        fill_randomly(pressed)
        replacements[id(layer)] = pressed.train(layer.training)
    return deepcopy(dense.module, replacements)
