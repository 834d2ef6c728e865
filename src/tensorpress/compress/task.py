"""The model to compress, its budget and data, and the steps that all methods share."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import TypedDict

import torch
from torch import nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.examples import select_examples
from tensorpress.calibrate.loss_curvature import LossCurvature
from tensorpress.compress.reference import Reference
from tensorpress.compress.split import halve_batches, split_batches, user_batches
from tensorpress.compress.verdict import Fidelity
from tensorpress.errors import BudgetMetError, InvalidArgumentError
from tensorpress.measure import count_bytes, count_macs, count_params, measure_latencies
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs
from tensorpress.measure.runtimes import in_runtime
from tensorpress.planning.budget import Budget
from tensorpress.planning.budget_rules import AllocationRule
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.plan import Plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.planning.planner import check_budget, plan
from tensorpress.planning.scores import Scores
from tensorpress.press.press import press
from tensorpress.sensitivity.curvature_scores import curvature_scores, linear_layers
from tensorpress.sensitivity.kfac import kfac_scores
from tensorpress.sensitivity.response_energy import response_energies
from tensorpress.utils.tensor_kinds import is_plain

LOSS = "curvature of the loss"
"""The criterion for language models; their layers get the factors that it scored."""

SCHEMES: Mapping[str, str | Sequence[str]] = {
    LOSS: "pivoted_svd",
    "response energy": ("channel_svd", "svd_weight"),
}
"""Schemes of the criteria that are limited to some."""


class TargetOptions(TypedDict):
    """The layers that may be pressed, as arguments of functions."""

    targets: Sequence[str]
    skip: Sequence[str]


CURVATURE = "curvature of the outputs"
"""The criterion whose scores add up to an error of the outputs."""

_PROBES = 2  # larger budgets to try for advice, if outputs are too far


@dataclass
class Task:
    """A model to compress, with its budget and data.

    Attributes
    ----------
    model : nn.Module
        The dense model.
    limit : Budget
        The budget.
    inputs : ModelInputs or None
        Arguments of a forward pass, if they are known.
    fitted : sequence of Batch
        Data that layers are fitted to; empty without calibration.
    reference : Reference or None
        Outputs of the dense model on held-out data that choose the best trial.
    judge : Reference or None
        Outputs on other held-out data that judge it; equal to ``reference`` if data are few.
    targets, skip : sequence of str
        The layers that may be pressed.
    seed : int
        Seed of all random choices.
    """

    model: nn.Module
    limit: Budget
    inputs: ModelInputs | None
    fitted: Sequence[Batch]
    reference: Reference | None
    judge: Reference | None
    targets: Sequence[str]
    skip: Sequence[str]
    seed: int
    _scores: dict[str, AllocationRule | Scores] = field(default_factory=dict)
    _curvature: list[LossCurvature] = field(default_factory=list)

    @staticmethod
    def make(
        model: nn.Module,
        limit: Budget,
        example_inputs: ExampleInputs | None,
        batches: Sequence[Batch] | None,
        targets: Sequence[str],
        skip: Sequence[str],
        seed: int,
    ) -> "Task":
        """Split the data, and run the dense model on all of them."""
        _check_weights(model)
        DenseModel.from_module(model, None, None).select_layers(targets, skip)  # checks the names
        inputs = None if example_inputs is None else ModelInputs.parse(example_inputs)
        if batches is None:
            _check_budget(model, limit, inputs, targets, skip)
            return Task(model, limit, inputs, (), None, None, targets, skip, seed)
        _check_batches(batches)
        inputs = inputs or select_examples(batches[0], torch.arange(1)).arguments
        _check_budget(model, limit, inputs, targets, skip)
        fitted, judged = split_batches(batches)
        choosing, judging = halve_batches(judged)
        same = sum(map(len, batches)) == 1  # a single example is fitted to and judges
        reference = Reference(model, [*choosing, *judging], () if same else fitted)
        judge = reference
        if judging:
            reference, judge = reference.split(len(choosing))
        return Task(model, limit, inputs, fitted, reference, judge, targets, skip, seed)

    @property
    def criteria(self) -> Mapping[str, Callable[[], AllocationRule | Scores]]:
        """The criteria that divide a budget among layers, by name."""
        if self.reference is None:
            return {"weight error": lambda: "error"}
        model, data = self.model, user_batches(self.fitted)
        where = TargetOptions(targets=self.targets, skip=self.skip)
        criteria: dict[str, Callable[[], AllocationRule | Scores]] = {
            CURVATURE: lambda: kfac_scores(model, data, scheme="auto", seed=self.seed, **where),
            "response energy": lambda: response_energies(model, data, **where),
            "weight error": lambda: "error",
        }
        if self.reference.tokens:
            criteria = {LOSS: lambda: curvature_scores(model, self.curvature, **where), **criteria}
        return criteria

    @property
    def refines(self) -> bool:
        """Whether blocks can be refined: with data, and not in a language model."""
        return self.reference is not None and not self.reference.tokens

    @property
    def curvature(self) -> LossCurvature:
        """The curvature of a language model's loss, which is collected once."""
        if not self._curvature:
            data = user_batches(self.fitted)
            names = list(linear_layers(self.model, self.targets, self.skip))
            collected = LossCurvature.collect(self.model, data, names=names, seed=self.seed)
            self._curvature.append(collected)
        return self._curvature[0]

    def plan(self, criterion: str, budget: str) -> Plan:
        """Return the plan of a criterion."""
        if criterion not in self._scores:
            self._scores[criterion] = self.criteria[criterion]()
        allocation = self._scores[criterion]
        return plan(
            self.model,
            self.inputs,
            scheme=SCHEMES.get(criterion, "auto"),
            allocation=allocation,
            budget=budget,
            targets=self.targets,
            skip=self.skip,
        )

    def estimate(self, made: Plan) -> float | None:
        """Return the error of the outputs that the curvature predicts for a plan, or None."""
        scores = self._scores.get(CURVATURE)
        if not isinstance(scores, Scores):
            return None
        total = 0.0
        for layer in made.layers:
            known = {(x.scheme, x.ranks): x.score for x in scores.choices(layer.name)}
            if (layer.scheme, layer.ranks) not in known:
                return None
            total += known[layer.scheme, layer.ranks]
        return sqrt(total)

    def near_budget(self, made: Plan, error: float, target: float) -> tuple[str, float] | None:
        """Return a larger budget at which outputs are near enough, and the error measured there.

        Predicted errors ignore how the errors of layers compound. So the ratio of measured to
        predicted error of one plan is applied to plans of larger budgets, and updated once.

        Parameters
        ----------
        made : Plan
            A plan by the curvature of the outputs.
        error : float
            Its measured error after fitting and refinement.
        target : float
            The error that is near enough.
        """
        estimate, result = self.estimate(made), None
        if not estimate or not isfinite(error) or self.limit.kind not in ("params", "macs"):
            return None
        factor = 1.0  # at least 1, because errors saturate near 100 %
        for _ in range(_PROBES):
            factor = max(error / estimate, factor)
            budget = self._least_budget(target / factor)
            if budget is None or (result is not None and budget == result[0]):
                break
            milder = self.plan(CURVATURE, budget)
            measured, estimate = self.verdict(self.press(milder, CURVATURE)), self.estimate(milder)
            if measured is None or not estimate:
                break
            error, result = measured.error, (budget, measured.error)
            if error <= target:
                break
        return result

    def _least_budget(self, estimate: float) -> str | None:
        """Return the least budget, in steps of 5 %, with at most this predicted error."""
        budgets = [f"{self.limit.kind}={percent}%" for percent in range(5, 100, 5)]

        def is_enough(budget: str) -> bool:
            try:
                expected = self.estimate(self.plan(CURVATURE, budget))
            except InvalidArgumentError:  # out of reach
                return False
            return expected is not None and expected <= estimate

        place = bisect_left(budgets, True, key=is_enough)
        return budgets[place] if place < len(budgets) else None

    def press(self, made: Plan, criterion: str) -> nn.Module:
        """Return the pressed model, fitted to data if there are any."""
        if not self.fitted:
            return press(self.model, made, seed=self.seed)
        data = self.curvature if criterion == LOSS else user_batches(self.fitted)
        return press(self.model, made, calibration=data, seed=self.seed)

    def fidelity(self, model: nn.Module) -> Fidelity | None:
        """Return the fidelity of a model on the data that choose."""
        return None if self.reference is None else self.reference.compare(model)

    def verdict(self, model: nn.Module) -> Fidelity | None:
        """Return the fidelity of a model on the data that judge."""
        return None if self.judge is None else self.judge.compare(model)

    def before(self, made: Plan | None) -> Fidelity | None:
        """Return the fidelity of a plan by weights alone; None for language models."""
        if made is None or self.judge is None or self.judge.tokens:
            return None
        return self.verdict(press(self.model, made, seed=self.seed))

    def costs(self, model: nn.Module, size: int | None) -> dict[str, tuple[float, float]]:
        """Return the costs of the dense and a compressed model; ``size`` is that of its file."""
        dense_bytes, compressed_bytes = count_bytes(self.model), count_bytes(model)
        costs: dict[str, tuple[float, float]] = {
            "params": (count_params(self.model), count_params(model)),
            "bytes": (dense_bytes, compressed_bytes if size is None else size),
        }
        if self.inputs is not None:
            costs["macs"] = count_macs(self.model, self.inputs), count_macs(model, self.inputs)
            runtime = self.limit.runtime
            coded = size is not None and not plan_from_model(model).layers
            compared = [self.model] if coded else [self.model, model]
            models = [in_runtime(x, self.inputs, runtime) for x in compared]
            times = measure_latencies(models, self.inputs)
            costs["latency_ms"] = times[0], times[-1]  # coding alone changes no layer
        return costs


def _check_budget(
    model: nn.Module,
    limit: Budget,
    inputs: ModelInputs | None,
    targets: Sequence[str],
    skip: Sequence[str],
) -> None:
    """Raise early if the budget is out of reach, or the dense model meets it."""
    if limit.kind != "bytes":
        check_budget(model, inputs, targets=targets, skip=skip, budget=str(limit))
        return
    for name, parameter in model.named_parameters():
        if not is_plain(parameter):
            raise InvalidArgumentError(
                f"{name!r} is of class {type(parameter).__name__}, which no file of a budget of "
                "bytes can hold: compress the model as it was before it was quantized"
            )
    if not limit.relative and count_bytes(model) <= limit.amount:
        raise BudgetMetError(
            f"the budget {limit} is met already: the dense model has {count_bytes(model):,} bytes"
        )


def _check_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_plain(parameter) and not bool(parameter.isfinite().all()):
            raise InvalidArgumentError(f"parameter {name!r} has values that are not finite")


def _check_batches(batches: Sequence[Batch]) -> None:
    for place, batch in enumerate(batches):
        # attention masks add minus infinity to scores
        if any(bool((x.isnan() | x.isposinf()).any()) for x in batch.arguments.tensors):
            raise InvalidArgumentError(f"batch {place} of the calibration data has NaN or infinity")
