"""The ways in which a model is brought within a budget, each carried out and measured."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import inf, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.codec.save_load import load
from tensorpress.compress.fidelity import Fidelity, Reference
from tensorpress.compress.result import Trial
from tensorpress.compress.split import rebatch, split_batches, user_batches
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure import count_macs, count_params, measure_latencies
from tensorpress.planning.budget import Budget
from tensorpress.planning.budget_rules import AllocationRule
from tensorpress.planning.plan import Plan
from tensorpress.planning.planner import plan
from tensorpress.planning.scores import Scores
from tensorpress.press.press import press
from tensorpress.quantize.encode import encode
from tensorpress.reconstruct.block_refinement import refine_blocks
from tensorpress.sensitivity.kfac import Curvature, kfac_scores
from tensorpress.sensitivity.response_energy import response_energies
from tensorpress.utils.atomic_files import replace_file

EPOCHS = 10
"""Most passes of refinement over the examples."""

REFINED_BATCH = 32
"""Examples of a step of refinement."""

MOST_MACS = 3e13
"""Most multiply–accumulates of refinement: about ten minutes on two cores."""

SHARES = (0.8, 0.6)
"""Parameters that low rank leaves before a model is coded, of the dense model's."""

WEIGHTS_ALONE = "coding, by weights alone"
"""The name of the trial whose file is made without calibration data."""


@dataclass(frozen=True)
class Attempt:
    """A trial with the model that it made, and the size of the file that holds it."""

    trial: Trial
    model: nn.Module
    size: int | None = None

    @property
    def distance(self) -> float:
        """How far the outputs are; the first attempt wins where that was not measured."""
        return inf if self.trial.fidelity is None else self.trial.fidelity.distance


@dataclass
class Task:
    """What is compressed, to which budget, and by which data.

    Attributes
    ----------
    model : nn.Module
        The dense model.
    limit : Budget
        The budget.
    inputs : tuple of Tensor
        Arguments of a forward pass; none where there are none.
    fitted : sequence of Batch
        Data that layers are fitted to; none without calibration.
    reference : Reference or None
        Outputs of the dense model on data that nothing is fitted to.
    targets, skip : sequence of str
        The layers that may be pressed.
    seed : int
        Of all that is drawn.
    """

    model: nn.Module
    limit: Budget
    inputs: tuple[Tensor, ...]
    fitted: Sequence[Batch]
    reference: Reference | None
    targets: Sequence[str]
    skip: Sequence[str]
    seed: int
    _scores: dict[str, AllocationRule | Scores] = field(default_factory=dict)

    @staticmethod
    def make(
        model: nn.Module,
        limit: Budget,
        example_inputs: Tensor | Sequence[Tensor] | None,
        batches: Sequence[Batch] | None,
        targets: Sequence[str],
        skip: Sequence[str],
        seed: int,
    ) -> "Task":
        """Split the data, and run the dense model on the part that judges."""
        given = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
        inputs = tuple(given or ())
        if batches is None:
            return Task(model, limit, inputs, (), None, targets, skip, seed)
        fitted, judged = split_batches(batches)
        inputs = inputs or tuple(x[:1] for x in batches[0].inputs)
        reference = Reference(model, judged)
        return Task(model, limit, inputs, fitted, reference, targets, skip, seed)

    @property
    def criteria(self) -> Mapping[str, Callable[[], AllocationRule | Scores]]:
        """The criteria by which a budget of shapes may be spread over layers, by name."""
        if self.reference is None:
            return {"weight error": lambda: "error"}
        data = user_batches(self.fitted)

        def curvature(of: Curvature) -> Scores:
            return kfac_scores(
                self.model, data, of=of, targets=self.targets, skip=self.skip, seed=self.seed
            )

        def energies() -> Scores:
            return response_energies(self.model, data, targets=self.targets, skip=self.skip)

        criteria: dict[str, Callable[[], AllocationRule | Scores]] = {
            "curvature of the outputs": lambda: curvature("outputs"),
            "response energy": energies,
            "weight error": lambda: "error",
        }
        if self.reference.has_logits:
            criteria["curvature of the loss"] = lambda: curvature("loss")
        return criteria

    def plan(self, criterion: str, budget: str) -> Plan:
        """Return the plan of a criterion."""
        if criterion not in self._scores:
            self._scores[criterion] = self.criteria[criterion]()
        allocation = self._scores[criterion]
        scored = isinstance(allocation, Scores)
        return plan(
            self.model,
            self.inputs or None,
            scheme="channel_svd" if scored else "auto",
            allocation=allocation,
            budget=budget,
            targets=self.targets,
            skip=self.skip,
        )

    def estimate(self, made: Plan) -> float | None:
        """Return the error of the outputs that the curvature adds up for a plan."""
        name = "curvature of the outputs"
        if self.reference is None or any(x.scheme != "channel_svd" for x in made.layers):
            return None
        scores = self._scores.get(name)
        if not isinstance(scores, Scores):
            return None
        known = [{x.ranks: x.score for x in scores.choices(layer.name)} for layer in made.layers]
        lost = [table.get(layer.ranks) for table, layer in zip(known, made.layers, strict=True)]
        return None if None in lost else sqrt(sum(cast(list[float], lost)))

    def press(self, made: Plan) -> nn.Module:
        """Return the pressed model, fitted to responses where there is data."""
        if not self.fitted:
            return press(self.model, made, seed=self.seed)
        return press(self.model, made, calibration=user_batches(self.fitted), seed=self.seed)

    def refine(self, attempt: Attempt) -> Attempt:
        """Return an attempt with its blocks refined, on as many passes as a few minutes allow."""
        began, batches = time.perf_counter(), rebatch(self.fitted, REFINED_BATCH)
        examples = sum(map(len, batches))
        macs = count_macs(attempt.model, self.inputs) if self.inputs else 0
        # Forward and back a pass multiplies thrice as much, once by blocks and once as a whole.
        epochs = min(EPOCHS, int(MOST_MACS / max(6 * macs * examples, 1)))
        name = f"{attempt.trial.name}, refined"
        if epochs < 1:
            reason = f"a pass over {examples:,} examples multiplies more than {MOST_MACS:.0e} times"
            return Attempt(Trial(name, attempt.trial.plan, None, failure=reason), attempt.model)
        model = deepcopy(attempt.model)
        refine_blocks(model, self.model, batches, epochs=epochs, seed=self.seed)
        fidelity, seconds = self.fidelity(model), time.perf_counter() - began
        trial = Trial(name, attempt.trial.plan, fidelity, attempt.trial.estimate, seconds)
        return Attempt(trial, model)

    def fidelity(self, model: nn.Module) -> Fidelity | None:
        """Return how far the outputs of a model are on the data that judges."""
        return None if self.reference is None else self.reference.compare(model)

    def before(self, made: Plan | None) -> Fidelity | None:
        """Return the fidelity of a plan by weights alone."""
        if made is None or self.reference is None:
            return None
        return self.fidelity(press(self.model, made, seed=self.seed))

    def costs(self, best: Attempt) -> dict[str, tuple[float, float]]:
        """Return what the dense and the compressed model cost."""
        models = (self.model, best.model)
        params, sizes = map(count_params, models), list(map(count_bytes, models))
        costs = {
            "params": cast(tuple[float, float], tuple(params)),
            "bytes": (sizes[0], sizes[1] if best.size is None else best.size),
        }
        if self.inputs:
            dense, compressed = (count_macs(model, self.inputs) for model in models)
            costs["macs"] = dense, compressed
            before, after = measure_latencies(models, self.inputs)
            costs["latency_ms"] = before, after
        return costs


def count_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def shape_trials(task: Task) -> Iterator[Attempt]:
    """Yield a pressed model for every criterion, the same plan no more than once."""
    plans: set[str] = set()
    for name in task.criteria:
        began = time.perf_counter()
        try:
            made = task.plan(name, str(task.limit))
            if made.id in plans:
                continue
            plans.add(made.id)
            model = task.press(made)
        except InvalidArgumentError as error:
            yield Attempt(Trial(name, None, None, failure=str(error)), task.model)
            continue
        fidelity, estimate = task.fidelity(model), task.estimate(made)
        seconds = time.perf_counter() - began
        yield Attempt(Trial(name, made, fidelity, estimate, seconds), model)


def bytes_trials(task: Task, out: str | os.PathLike[str] | None) -> Iterator[Attempt]:
    """Yield models coded with data and without, and pressed before as long as that helps.

    Nothing is pressed where coding leaves the outputs nearly the same, or nothing compares them.
    """
    limit = int(task.limit.resolve(count_bytes(task.model)))
    with TemporaryDirectory() as folder:
        best = _code(task, "coding", None, limit, Path(folder))
        yield best
        if task.reference is not None and not _nothing_to_gain(best):
            # Calibration misjudges layers that it does not reach, such as recurrent ones.
            attempt = _code(task, WEIGHTS_ALONE, None, limit, Path(folder))
            yield attempt
            best = min(best, attempt, key=lambda attempt: attempt.distance)
        for share in SHARES:
            if _nothing_to_gain(best):
                break
            name = f"{100 * share:.0f} % of the parameters, coded"
            began = time.perf_counter()
            try:
                made = _nearest_plan(task, f"params={100 * share:g}%")
            except InvalidArgumentError as error:
                yield Attempt(Trial(name, None, None, failure=str(error)), task.model)
                break
            attempt = _code(task, name, made, limit, Path(folder), began)
            yield attempt
            if attempt.trial.failure is not None or attempt.distance >= best.distance:
                break
            best = attempt
        if out is not None and best.trial.failure is None:
            with replace_file(out) as temporary:
                temporary.write_bytes((Path(folder) / best.trial.name).read_bytes())


def _nothing_to_gain(attempt: Attempt) -> bool:
    fidelity = attempt.trial.fidelity
    if attempt.trial.failure is not None:
        return False
    return fidelity is None or fidelity.nearly_same


def _nearest_plan(task: Task, budget: str) -> Plan:
    """Return a plan for parameters by the curvature of the outputs, or by weights without data."""
    return task.plan(next(iter(task.criteria)), budget)


def _code(
    task: Task,
    name: str,
    made: Plan | None,
    limit: int,
    folder: Path,
    began: float | None = None,
) -> Attempt:
    """Write a model, pressed first where there is a plan, and read it again."""
    began = time.perf_counter() if began is None else began
    model = task.model if made is None else task.press(made)
    data = user_batches(task.fitted) if task.fitted and name != WEIGHTS_ALONE else None
    path = folder / name
    try:
        size = encode(model, path, size=limit, calibration=data, seed=task.seed).bytes
    except InvalidArgumentError as error:
        return Attempt(Trial(name, made, None, failure=str(error)), model)
    decoded = load(path, task.model)
    fidelity = task.fidelity(decoded)
    return Attempt(Trial(name, made, fidelity, None, time.perf_counter() - began), decoded, size)
