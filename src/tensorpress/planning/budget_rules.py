"""The rules by which a budget is divided among the layers of a model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal, Protocol

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.layer_candidates import candidate_plans, plan_with_ranks, refuse_no_gain
from tensorpress.planning.layers import Layer
from tensorpress.planning.scores import Scores
from tensorpress.ranks import EVBMFRanks, FixedRanks, FractionRanks, RankRule
from tensorpress.ranks.allocation import Allocation, Option, allocate
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.scheme import Scheme

AllocationRule = Literal["error", "energy", "uniform", "evbmf"]
"""The names of the rules that divide a budget; see `tensorpress.plan`."""

SMALLEST_ENERGY = 1e-12
"""Least remaining energy of a layer, so that its logarithm is finite."""

LARGEST_ERROR = 0.9
"""Largest relative error of a weight, as long as the budget allows it."""

STEPS = 40
"""Bisections of the number in a uniform rule."""

NO_RANKS = "no ranks make it both smaller and no slower"
OUTBID = "pressing other layers meets the budget with less loss"

LayerSchemes = dict[str, tuple[Layer, Sequence[Scheme]]]
"""The layers that may be pressed, with the schemes that can press each."""


@dataclass(frozen=True)
class Task:
    """The layers that share a budget, and their costs.

    Attributes
    ----------
    layers : LayerSchemes
        The layers by name.
    cost : callable
        Function that returns the cost of a layer's plan.
    dense : mapping of str to float
        The cost of each dense layer.
    round_to : int
        Ranks are multiples of it.
    """

    layers: LayerSchemes
    cost: Callable[[LayerPlan], float]
    dense: Mapping[str, float]
    round_to: int = 1

    def saves(self, plan: LayerPlan) -> bool:
        """Return whether a plan is smaller, and costs less, than the dense layer."""
        return refuse_no_gain(plan) is None and self.cost(plan) < self.dense[plan.name]


class Choices(Protocol):
    """The plans of one rule for budgets of any amount."""

    @property
    def least_cost(self) -> float:
        """The least cost of all layers together."""

    def choose(self, available: float) -> dict[str, LayerPlan]:
        """Return the plans of the pressed layers; ``least_cost`` must be available."""

    def explain_dense(self, name: str) -> str:
        """Return why a layer stays dense."""


def make_choices(task: Task, rule: str | Scores) -> Choices:
    """Return the choices that a rule makes; weights are decomposed here, once.

    Raises
    ------
    InvalidArgumentError
        If the rule cannot use the weight of a layer, or takes one scheme and there are several.
    """
    if isinstance(rule, Scores):
        return _ScoredChoices(task, _plan_scores(task, rule), rule.rule)
    if rule == "uniform":
        return _UniformChoices(task, lambda _, number: FractionRanks(max(number, 1e-9)))
    plans: dict[str, list[LayerPlan]] = {}
    for name, (layer, schemes) in task.layers.items():
        try:
            if rule == "evbmf":
                plans[name] = [plan_with_ranks(layer, schemes[0], EVBMFRanks())]
            else:
                plans[name] = candidate_plans(layer, schemes, task.round_to)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"layer {name!r}: {error}") from None
    if rule == "evbmf":
        return _UniformChoices(
            task, lambda name, number: _ScaledRanks(plans[name][0].ranks, number)
        )
    score = _error_to_signal if rule == "error" else _lost_energy
    scored = {name: [(p, score(p.error or 0.0)) for p in group] for name, group in plans.items()}
    return _ScoredChoices(task, scored, "total" if rule == "error" else "greedy")


ScoredPlans = list[tuple[LayerPlan, float]]


class _ScoredChoices:
    """Choices from several plans for every layer, each with a score."""

    def __init__(self, task: Task, plans: Mapping[str, ScoredPlans], method: Allocation) -> None:
        self._method = method
        self._plans: dict[str, list[LayerPlan | None]] = {}
        self._options: dict[str, list[Option]] = {}
        for name, scored in plans.items():
            smaller = [(plan, score) for plan, score in scored if task.saves(plan)]
            # Plans within the largest error come first, so indices are the same without the others.
            smaller.sort(key=lambda option: (option[0].error or 0.0) > LARGEST_ERROR)
            self._plans[name] = [None, *(plan for plan, _ in smaller)]
            options = [Option(task.cost(plan), score) for plan, score in smaller]
            self._options[name] = [Option(task.dense[name], 0.0), *options]

    @property
    def least_cost(self) -> float:
        return _least_cost(self._options.values())

    def choose(self, available: float) -> dict[str, LayerPlan]:
        # Errors above the limit are allowed only if the budget is otherwise out of reach.
        options = [
            [
                option
                for option, plan in zip(self._options[name], plans, strict=True)
                if plan is None or (plan.error or 0.0) <= LARGEST_ERROR
            ]
            for name, plans in self._plans.items()
        ]
        if _least_cost(options) > available:
            options = list(self._options.values())
        indices = allocate(options, available, method=self._method)
        chosen = zip(self._plans.items(), indices, strict=True)
        return {name: plan for (name, plans), i in chosen if (plan := plans[i]) is not None}

    def explain_dense(self, name: str) -> str:
        return OUTBID if len(self._options[name]) > 1 else NO_RANKS


class _UniformChoices:
    """Choices by one number from 0 to 1 for all layers, which raises all costs."""

    def __init__(self, task: Task, rule_at: Callable[[str, float], RankRule]) -> None:
        for name, (_, schemes) in task.layers.items():
            if len(schemes) > 1:
                raise InvalidArgumentError(
                    f"this allocation takes one scheme, but layer {name!r} has a choice of "
                    f"{', '.join(scheme.name for scheme in schemes)}: name one scheme"
                )
        self._task, self._rule_at = task, rule_at

    @property
    def least_cost(self) -> float:
        return self._cost(self._plans(0.0))

    def choose(self, available: float) -> dict[str, LayerPlan]:
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            fits = self._cost(self._plans(middle)) <= available
            low, high = (middle, high) if fits else (low, middle)
        return self._plans(low)

    def explain_dense(self, name: str) -> str:
        return NO_RANKS

    def _plans(self, number: float) -> dict[str, LayerPlan]:
        plans = {
            name: plan_with_ranks(layer, scheme, self._rule_at(name, number), self._task.round_to)
            for name, (layer, [scheme]) in self._task.layers.items()
        }
        return {name: plan for name, plan in plans.items() if self._task.saves(plan)}

    def _cost(self, plans: Mapping[str, LayerPlan]) -> float:
        dense = (cost for name, cost in self._task.dense.items() if name not in plans)
        return sum(map(self._task.cost, plans.values())) + sum(dense)


def _least_cost(options: Iterable[Sequence[Option]]) -> float:
    return sum(min(option.cost for option in layer) for layer in options)


def _error_to_signal(error: float) -> float:
    """Return e² / (1 − e²), the lost over the remaining energy, which grows without bound."""
    return error**2 / max(1 - error**2, SMALLEST_ENERGY)


def _lost_energy(error: float) -> float:
    """Return −ln of the remaining energy; its sum is −ln of the product over layers."""
    return -log(max(1 - error**2, SMALLEST_ENERGY))


def _plan_scores(task: Task, scores: Scores) -> dict[str, ScoredPlans]:
    """Return the scored plans of the schemes that each layer may have."""
    result: dict[str, ScoredPlans] = {}
    for name, (layer, schemes) in task.layers.items():
        by_name = {scheme.name: scheme for scheme in schemes}
        result[name] = [
            (plan_with_ranks(layer, by_name[x.scheme], FixedRanks(x.ranks)), max(x.score, 0.0))
            for x in scores.choices(name)
            if x.scheme in by_name
        ]
    return result


@dataclass(frozen=True)
class _ScaledRanks:
    """Ranks between the largest (at 1), EVBMF's (at ½) and none (at 0), at least 1."""

    evbmf: tuple[int, ...]
    number: float
    needs_spectra: ClassVar[bool] = False

    def ranks(self, spectra: Sequence[Spectrum], largest: Sequence[int]) -> tuple[int, ...]:
        more = max(2 * self.number - 1, 0.0)
        less = min(2 * self.number, 1.0)
        return tuple(
            max(1, round(less * rank + more * (limit - rank)))
            for limit, rank in zip(largest, self.evbmf, strict=True)
        )
