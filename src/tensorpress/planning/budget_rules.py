"""Spreading a budget over the layers of a model."""

from collections.abc import Callable, Mapping, Sequence
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
"""The names of the rules by which a budget is spread: see `tensorpress.plan`."""

SMALLEST_ENERGY = 1e-12
"""Of a layer of which nothing is left, so that its logarithm is a number."""

STEPS = 40
"""Bisections of the one number that a uniform rule has."""

NO_RANKS = "no ranks make it smaller, or none that multiply less"
OUTBID = "the budget is met with less loss by pressing others"


Ways = dict[str, tuple[Layer, Sequence[Scheme]]]
"""The layers that may be pressed, with the schemes that can take each."""


@dataclass(frozen=True)
class Task:
    """Over which layers a budget is spread, and what counts.

    Attributes
    ----------
    layers : Ways
        By name.
    cost : callable
        What a layer's plan takes of the budget.
    dense : mapping of str to float
        What each layer takes left dense.
    round_to : int
        Ranks are multiples of it.
    """

    layers: Ways
    cost: Callable[[LayerPlan], float]
    dense: Mapping[str, float]
    round_to: int = 1

    def saves(self, plan: LayerPlan) -> bool:
        """Whether a layer is better pressed so than left dense."""
        return refuse_no_gain(plan) is None and self.cost(plan) < self.dense[plan.name]


class Choices(Protocol):
    """All ways of spreading by one rule."""

    @property
    def least_cost(self) -> float:
        """The least that the layers can cost together."""

    def choose(self, available: float) -> dict[str, LayerPlan]:
        """Return the plans of the layers that are pressed; ``least_cost`` must be available."""

    def explain_dense(self, name: str) -> str:
        """Return why a layer is left dense."""


Spreading = tuple[dict[str, LayerPlan], Choices]
"""The plans of the layers that are pressed, and what they were chosen from."""


def make_choices(task: Task, rule: str | Scores) -> Choices:
    """Return the ways in which a rule spreads; what takes time is done here, once.

    Raises
    ------
    InvalidArgumentError
        For a layer whose weight the rule cannot use, or several schemes where it says ranks of one.
    """
    if isinstance(rule, Scores):
        return _Allocated(task, _plans_of_scores(task, rule), rule.rule)
    if rule == "uniform":
        return _OneNumber(task, lambda _, number: FractionRanks(max(number, 1e-9)))
    if rule == "evbmf":
        return _evbmf(task)
    plans = {name: _list_plans(task, name) for name in task.layers}
    if rule == "error":
        return _Allocated(task, _score_plans(plans, lambda error: error**2), "total")
    return _Allocated(task, _score_plans(plans, _lost_energy), "greedy")


Scored = list[tuple[LayerPlan, float]]


class _Allocated:
    """Every layer has its options, each with a score."""

    def __init__(self, task: Task, plans: Mapping[str, Scored], by: Allocation) -> None:
        self._by = by
        self._ways: dict[str, list[tuple[LayerPlan | None, Option]]] = {
            name: [(None, Option(task.dense[name], 0.0))]
            + [(p, Option(task.cost(p), score)) for p, score in found if task.saves(p)]
            for name, found in plans.items()
        }

    @property
    def least_cost(self) -> float:
        return sum(min(option.cost for _, option in found) for found in self._ways.values())

    def choose(self, available: float) -> dict[str, LayerPlan]:
        layers = [[option for _, option in found] for found in self._ways.values()]
        chosen = allocate(layers, available, method=self._by)
        picked = {
            name: found[index][0]
            for (name, found), index in zip(self._ways.items(), chosen, strict=True)
        }
        return {name: plan for name, plan in picked.items() if plan is not None}

    def explain_dense(self, name: str) -> str:
        return OUTBID if len(self._ways[name]) > 1 else NO_RANKS


class _OneNumber:
    """All layers are pressed by one number from 0 to 1, the larger the costlier."""

    def __init__(self, task: Task, rule_at: Callable[[str, float], RankRule]) -> None:
        for name, (_, schemes) in task.layers.items():
            if len(schemes) > 1:
                raise InvalidArgumentError(
                    f"one rule for all layers says ranks of one scheme, but layer {name!r} may "
                    f"have {', '.join(scheme.name for scheme in schemes)}: name one scheme"
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
        found = {
            name: plan_with_ranks(layer, scheme, self._rule_at(name, number), self._task.round_to)
            for name, (layer, [scheme]) in self._task.layers.items()
        }
        return {name: plan for name, plan in found.items() if self._task.saves(plan)}

    def _cost(self, plans: Mapping[str, LayerPlan]) -> float:
        dense = (cost for name, cost in self._task.dense.items() if name not in plans)
        return sum(map(self._task.cost, plans.values())) + sum(dense)


def _list_plans(task: Task, name: str) -> list[LayerPlan]:
    layer, schemes = task.layers[name]
    try:
        return candidate_plans(layer, schemes, task.round_to)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"layer {name!r}: {error}") from None


def _score_plans(
    plans: Mapping[str, list[LayerPlan]], score: Callable[[float], float]
) -> dict[str, Scored]:
    return {
        name: [(plan, score(plan.error or 0.0)) for plan in ways] for name, ways in plans.items()
    }


def _lost_energy(error: float) -> float:
    """Return −ln of the kept energy: its sum is the logarithm of the product over layers."""
    return -log(max(1 - error**2, SMALLEST_ENERGY))


def _plans_of_scores(task: Task, scores: Scores) -> dict[str, Scored]:
    """Return the plans that were scored, of those schemes that a layer may have."""
    found: dict[str, Scored] = {}
    for name, (layer, schemes) in task.layers.items():
        known = {scheme.name: scheme for scheme in schemes}
        found[name] = [
            (plan_with_ranks(layer, known[x.scheme], FixedRanks(x.ranks)), max(x.score, 0.0))
            for x in scores.choices(name)
            if x.scheme in known
        ]
    return found


def _evbmf(task: Task) -> _OneNumber:
    """Return the ranks of EVBMF, weakened or strengthened; spectra are computed once."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (layer, schemes) in task.layers.items():
        try:
            found[name] = plan_with_ranks(layer, schemes[0], EVBMFRanks()).ranks
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"layer {name!r}: {error}") from None
    return _OneNumber(task, lambda name, number: _Weakened(found[name], number))


@dataclass(frozen=True)
class _Weakened:
    """Ranks between the largest (at 1), EVBMF's (at ½) and none (at 0), at least 1."""

    evbmf: tuple[int, ...]
    number: float
    needs_spectra: ClassVar[bool] = False

    def ranks(self, spectra: Sequence[Spectrum], largest: Sequence[int]) -> tuple[int, ...]:
        more = max(2 * self.number - 1, 0.0)
        less = min(2 * self.number, 1.0)
        return tuple(
            max(1, round(less * rank + more * (most - rank)))
            for most, rank in zip(largest, self.evbmf, strict=True)
        )
