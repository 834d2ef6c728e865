"""Planning within a budget of parameters, bytes, MACs or measured latency."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

from torch import nn

from tensorpress.errors import BudgetMetError, InvalidArgumentError
from tensorpress.measure.latency import measure_latencies
from tensorpress.measure.runtimes import in_runtime
from tensorpress.planning.budget import Budget
from tensorpress.planning.budget_rules import Choices, LayerSchemes, Task, make_choices
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.latency_search import fit_latency
from tensorpress.planning.layer_candidates import applicable_schemes, plan_with_ranks
from tensorpress.planning.layer_latency import LayerTimer, fill_randomly
from tensorpress.planning.layers import Layer
from tensorpress.planning.plan import PlannedLatency
from tensorpress.planning.scores import Scores
from tensorpress.ranks import FractionRanks
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import WEIGHT
from tensorpress.schemes.registry import scheme as scheme_named

LEAST_SHARE = 0.01
"""Smallest predicted share of the dense model's time; times of single layers may add up to more."""

LARGEST = 3
"""Number of parameters that an error message names."""

UNITS = {"params": "parameters", "bytes": "bytes", "macs": "MACs", "latency": "time"}


class Allotment(NamedTuple):
    """The layers that fit a budget.

    Attributes
    ----------
    pressed : dict of str to LayerPlan
        The layers that are pressed.
    unpressed : dict of str to str
        The others, with the reason.
    latency : PlannedLatency or None
        The times, for a latency budget.
    """

    pressed: dict[str, LayerPlan]
    unpressed: dict[str, str]
    latency: PlannedLatency | None


def plan_within_budget(
    limit: Budget,
    dense: DenseModel,
    layers: Mapping[str, Layer],
    schemes: Mapping[str, Sequence[str]],
    fixed: Mapping[str, LayerPlan],
    rule: str | Scores,
    round_to: int,
) -> Allotment:
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
        The schemes that may press each layer.
    fixed : mapping of str to LayerPlan
        Layers that are pressed in any case.
    rule : str or Scores
        The allocation of the budget; see `tensorpress.plan`.
    round_to : int
        Ranks are multiples of it.

    Raises
    ------
    InvalidArgumentError
        If the budget is out of reach (the message has the least possible cost), inputs are missing
        for MACs or latency, or the rule is unknown.
    BudgetMetError
        If the dense model meets the budget.
    """
    candidates, unpressed = _find_candidates(limit, dense, layers, schemes)
    allot = _allot_latency if limit.kind == "latency" else _allot_count
    pressed, choices, latency = allot(limit, dense, candidates, fixed, rule, round_to)
    unpressed |= {name: choices.explain_dense(name) for name in candidates if name not in pressed}
    return Allotment(pressed, unpressed, latency)


def check_reach(
    limit: Budget,
    dense: DenseModel,
    layers: Mapping[str, Layer],
    schemes: Mapping[str, Sequence[str]],
    fixed: Mapping[str, LayerPlan],
) -> None:
    """Raise the errors of `plan_within_budget` without reading weights.

    For a latency, this only checks that the dense model exceeds the budget.
    """
    candidates, _ = _find_candidates(limit, dense, layers, schemes)
    if limit.kind == "latency":
        _measure_dense(limit, dense)
    else:
        _Count(limit, dense, candidates, fixed).check_reach()


def _find_candidates(
    limit: Budget,
    dense: DenseModel,
    layers: Mapping[str, Layer],
    schemes: Mapping[str, Sequence[str]],
) -> tuple[LayerSchemes, dict[str, str]]:
    """Return the layers that a budget may press, with their schemes, and reasons for the others."""
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
        raise InvalidArgumentError(
            f"a budget of {limit.kind} needs example inputs (in a command, --input 1x3x224x224)"
        )
    return candidates, unpressed


_Divided = tuple[dict[str, LayerPlan], Choices, PlannedLatency | None]


class _Count:
    """A budget of parameters, bytes or MACs, which are counted exactly.

    Attributes
    ----------
    dense_costs : dict of str to float
        The costs of the layers that may be pressed.
    others : float
        The cost of everything else, fixed layers pressed.
    amount : float
        The most that the whole model may cost.
    """

    def __init__(
        self,
        limit: Budget,
        dense: DenseModel,
        candidates: LayerSchemes,
        fixed: Mapping[str, LayerPlan],
    ) -> None:
        total = {"params": dense.params, "bytes": dense.bytes, "macs": dense.macs}[limit.kind]
        assert total is not None
        self._limit, self._model, self._total = limit, dense, total
        self._names = [*candidates, *fixed]
        self.amount = limit.resolve(total)
        if self.amount >= total:
            raise BudgetMetError(
                f"the budget {limit} is met already: the dense model has {total:,} "
                f"{UNITS[limit.kind]}"
            )
        smallest = {
            name: [plan_with_ranks(layer, scheme, FractionRanks(1e-9)) for scheme in schemes]
            for name, (layer, schemes) in candidates.items()
        }
        self.dense_costs = {name: float(self._costs(x)[1]) for name, (x, *_) in smallest.items()}
        self._least = {name: min(map(self.cost, plans)) for name, plans in smallest.items()}
        # A core that fixed layers share is counted once.
        with_fixed = getattr(dense.plan("", list(fixed.values()), {}), limit.kind)
        self.others = with_fixed - sum(self.dense_costs.values())

    def cost(self, plan: LayerPlan) -> int:
        """Return the cost of a layer's plan."""
        return self._costs(plan)[0]

    def check_reach(self, least_cost: float | None = None) -> None:
        """Raise an `InvalidArgumentError` if even the least cost exceeds the budget."""
        if least_cost is None:
            pairs = self.dense_costs.items()
            least_cost = sum(min(cost, self._least[name]) for name, cost in pairs)
        least, unit = self.others + least_cost, UNITS[self._limit.kind]
        if least > self.amount:
            # Most of the largest parameters, embeddings and biases, multiply nothing.
            largest = "" if unit == "MACs" else _name_largest(self._model, self._names)
            raise InvalidArgumentError(
                f"the budget {self._limit} is out of reach: at the smallest ranks the model "
                f"still has {least:,.0f} of {self._total:,} {unit}"
                f"{largest}{self._limit.percent_hint}"
            )

    def _costs(self, plan: LayerPlan) -> tuple[int, int]:
        if self._limit.kind == "macs":
            return plan.macs, plan.dense_macs
        unit = plan.itemsize if self._limit.kind == "bytes" else 1
        return unit * plan.factor_params, unit * plan.dense_params


def _allot_count(
    limit: Budget,
    dense: DenseModel,
    candidates: LayerSchemes,
    fixed: Mapping[str, LayerPlan],
    rule: str | Scores,
    round_to: int,
) -> _Divided:
    """Divide a budget of parameters, bytes or MACs."""
    count = _Count(limit, dense, candidates, fixed)
    count.check_reach()
    choices = make_choices(Task(candidates, count.cost, count.dense_costs, round_to), rule)
    count.check_reach(choices.least_cost)
    return choices.choose(count.amount - count.others), choices, None


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
    return f"; the largest dense parameters are {named}" if named else ""


def _measure_dense(limit: Budget, dense: DenseModel) -> float:
    """Return the milliseconds of a dense pass; raise if they meet the budget."""
    assert dense.inputs is not None
    model = in_runtime(dense.module, dense.inputs, limit.runtime)
    time = measure_latencies([model], dense.inputs)[0]
    if not limit.relative and time <= limit.amount:
        raise BudgetMetError(
            f"the budget {limit} is met already: the dense model takes {time:.2f} ms"
        )
    return time


def _allot_latency(
    limit: Budget,
    dense: DenseModel,
    candidates: LayerSchemes,
    fixed: Mapping[str, LayerPlan],
    rule: str | Scores,
    round_to: int,
) -> _Divided:
    """Divide the time of a forward pass, as measured on this machine.

    Dense and pressed layers are timed one by one, and the sum of these times is divided. Then whole
    models are built and timed until one meets the budget. A layer that pressing makes slower stays
    dense.
    """
    assert dense.inputs is not None
    inputs = dense.inputs
    dense_time = _measure_dense(limit, dense)
    like = next(dense.module.parameters())
    timer = LayerTimer(like, dense.inputs.tensors, round_to=round_to, runtime=limit.runtime)

    def cost(plan: LayerPlan) -> float:
        shapes = dense.layers[plan.name].inputs
        return timer.time_pressed(plan.method, plan.spec, [plan.ranks], shapes)[0]

    def dense_cost(name: str) -> float:
        layer = dense.layers[name]
        return timer.time_dense(layer.spec(), layer.inputs)

    replaced = [layer for layer in fixed.values() if layer.calls]
    task = Task(candidates, cost, {name: dense_cost(name) for name in candidates}, round_to)
    choices = make_choices(task, rule)
    saved = sum(dense_cost(plan.name) - cost(plan) for plan in replaced)
    others = dense_time - saved - sum(task.dense.values())

    def choose(share: float) -> dict[str, LayerPlan]:
        return choices.choose(max(share * dense_time - others, choices.least_cost))

    def build(share: float) -> nn.Module:
        model = _build_random(dense, [*replaced, *choose(share).values()])
        return in_runtime(model, inputs, limit.runtime)

    predicted, reached = fit_latency(
        build,
        in_runtime(dense.module, inputs, limit.runtime),
        inputs,
        limit.amount,
        relative=limit.relative,
        lowest=max((others + choices.least_cost) / dense_time, LEAST_SHARE),
    )
    reached_ms = reached * dense_time if limit.relative else reached
    times = PlannedLatency(dense_time, predicted * dense_time, reached_ms, limit.runtime)
    return choose(predicted), choices, times


def _build_random(dense: DenseModel, plans: list[LayerPlan]) -> nn.Module:
    """Return the pressed model with random values."""
    replacements: dict[int, nn.Module] = {}
    for plan in plans:
        layer = dense.layers[plan.name].module
        pressed = plan.method.skeleton(plan.spec, plan.ranks, like=layer.get_parameter("weight"))
        fill_randomly(pressed)
        replacements[id(layer)] = pressed.train(layer.training)
    return deepcopy(dense.module, replacements)
