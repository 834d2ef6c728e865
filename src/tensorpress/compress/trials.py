"""The ways in which a model is brought within a budget, each carried out and measured."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from math import inf, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from torch import nn

from tensorpress.calibrate.batches import Batch
from tensorpress.compress.reference import Reference
from tensorpress.compress.result import Trial
from tensorpress.compress.split import rebatch, select_examples, split_batches, user_batches
from tensorpress.compress.verdict import Fidelity
from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.measure import count_macs, count_params, measure_latencies
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs
from tensorpress.planning.budget import Budget
from tensorpress.planning.budget_rules import AllocationRule
from tensorpress.planning.layers import match_names
from tensorpress.planning.plan import Plan
from tensorpress.planning.planner import plan
from tensorpress.planning.scores import Scores
from tensorpress.press.press import press
from tensorpress.quantize.encode import decode, encode
from tensorpress.reconstruct.block_refinement import refine_blocks
from tensorpress.sensitivity.kfac import Curvature, kfac_scores
from tensorpress.sensitivity.response_energy import response_energies
from tensorpress.utils.atomic_files import replace_file

logger = logging.getLogger("tensorpress.compress")

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

    def beats(self, other: "Attempt | None") -> bool:
        """Tell whether the model meets the budget, and is nearer than another that may do so.

        The first attempt wins where outputs were not compared.
        """
        if self.trial.failure is not None or other is None or other.trial.failure is not None:
            return self.trial.failure is None
        return self._order < other._order

    @property
    def _order(self) -> tuple[float, float]:
        return (inf, inf) if self.trial.fidelity is None else self.trial.fidelity.order


@dataclass
class Task:
    """What is compressed, to which budget, and by which data.

    Attributes
    ----------
    model : nn.Module
        The dense model.
    limit : Budget
        The budget.
    inputs : ModelInputs or None
        Arguments of a forward pass, where they are known.
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
    inputs: ModelInputs | None
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
        example_inputs: ExampleInputs | None,
        batches: Sequence[Batch] | None,
        targets: Sequence[str],
        skip: Sequence[str],
        seed: int,
    ) -> "Task":
        """Split the data, and run the dense model on all of them."""
        _check_weights(model)
        inputs = None if example_inputs is None else ModelInputs.parse(example_inputs)
        if batches is None:
            return Task(model, limit, inputs, (), None, targets, skip, seed)
        _check_batches(batches)
        fitted, judged = split_batches(batches)
        inputs = inputs or select_examples(batches[0], torch.arange(1)).arguments
        reference = Reference(model, judged, fitted if fitted is not judged else ())
        return Task(model, limit, inputs, fitted, reference, targets, skip, seed)

    @property
    def criteria(self) -> Mapping[str, Callable[[], AllocationRule | Scores]]:
        """The criteria by which a budget of shapes may be spread over layers, by name."""
        if self.reference is None:
            return {"weight error": lambda: "error"}
        data = user_batches(self.fitted)

        def curvature(of: Curvature) -> Scores:
            return kfac_scores(
                self.model,
                data,
                of=of,
                scheme="auto",
                targets=self.targets,
                skip=self.skip,
                seed=self.seed,
            )

        def energies() -> Scores:
            return response_energies(self.model, data, targets=self.targets, skip=self.skip)

        criteria: dict[str, Callable[[], AllocationRule | Scores]] = {
            "curvature of the outputs": lambda: curvature("outputs"),
            "response energy": energies,
            "weight error": lambda: "error",
        }
        if self.reference.tokens:
            criteria["curvature of the loss"] = lambda: curvature("loss")
        return criteria

    def plan(self, criterion: str, budget: str) -> Plan:
        """Return the plan of a criterion."""
        if criterion not in self._scores:
            self._scores[criterion] = self.criteria[criterion]()
        allocation = self._scores[criterion]
        return plan(
            self.model,
            self.inputs,
            scheme="channel_svd" if criterion == "response energy" else "auto",
            allocation=allocation,
            budget=budget,
            targets=self.targets,
            skip=self.skip,
        )

    def estimate(self, made: Plan) -> float | None:
        """Return the error of the outputs that the curvature adds up for a plan."""
        name = "curvature of the outputs"
        if self.reference is None:
            return None
        scores = self._scores.get(name)
        if not isinstance(scores, Scores):
            return None
        lost = [
            next(
                (
                    choice.score
                    for choice in scores.choices(layer.name)
                    if (choice.scheme, choice.ranks) == (layer.scheme, layer.ranks)
                ),
                None,
            )
            for layer in made.layers
        ]
        return None if None in lost else sqrt(sum(cast(list[float], lost)))

    def press(self, made: Plan) -> nn.Module:
        """Return the pressed model, fitted to responses where there is data."""
        if not self.fitted:
            return press(self.model, made, seed=self.seed)
        return press(self.model, made, calibration=user_batches(self.fitted), seed=self.seed)

    def refine(self, attempt: Attempt) -> Attempt:
        """Return an attempt with its blocks refined, on as many passes as a few minutes allow."""
        began, batches = time.perf_counter(), rebatch(self.fitted, REFINED_BATCH)
        name, made = f"{attempt.trial.name}, refined", attempt.trial.plan
        examples = sum(map(len, batches))
        try:
            macs = 0 if self.inputs is None else count_macs(attempt.model, self.inputs)
            # Forward and back a pass multiplies thrice as much, once by blocks, once as a whole.
            epochs = min(EPOCHS, int(MOST_MACS / max(6 * macs * examples, 1)))
            if epochs < 1:
                raise InvalidArgumentError(
                    f"a pass over {examples:,} examples multiplies more than {MOST_MACS:.0e} times"
                )
            model = deepcopy(attempt.model)
            with self._skipped(model):
                refine_blocks(model, self.model, batches, epochs=epochs, seed=self.seed)
            fidelity = self.fidelity(model)
        except Exception as error:  # what was tried before must not be lost
            return failed(name, error, attempt.model, made)
        seconds = time.perf_counter() - began
        return Attempt(Trial(name, made, fidelity, attempt.trial.estimate, seconds), model)

    @contextmanager
    def _skipped(self, model: nn.Module) -> Iterator[None]:
        """Ask for no gradients of the layers that are to be skipped, and all that is in them."""
        modules = [name for name, _ in self.model.named_modules() if name]
        names = [*modules, *(name for name, _ in self.model.named_parameters())]
        skipped = {name for pattern in self.skip for name in match_names(pattern, names, {})}
        frozen = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
            and any(name == layer or name.startswith(f"{layer}.") for layer in skipped)
        ]
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

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
        if self.inputs is not None:
            dense, compressed = (count_macs(model, self.inputs) for model in models)
            costs["macs"] = dense, compressed
            before, after = measure_latencies(models, self.inputs)
            costs["latency_ms"] = before, after
        return costs


def failed(name: str, error: Exception, model: nn.Module, made: Plan | None = None) -> Attempt:
    """Return an attempt that failed by an error, which is not allowed to lose the others."""
    reason = (
        str(error) if isinstance(error, TensorPressError) else f"{type(error).__name__}: {error}"
    )
    logger.debug("%s", name, exc_info=error)
    return Attempt(Trial(name, made, None, failure=" ".join(reason.split())), model)


def _check_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise InvalidArgumentError(f"parameter {name!r} has values that are not finite")


def _check_batches(batches: Sequence[Batch]) -> None:
    for place, batch in enumerate(batches):
        if any(bool(x.isnan().any()) for x in batch.arguments.tensors):
            raise InvalidArgumentError(f"batch {place} of the calibration data has NaN")


def count_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def shape_trials(task: Task) -> Iterator[Attempt]:
    """Yield a pressed model for every criterion, the same plan no more than once."""
    plans: set[str] = set()
    criteria = list(task.criteria)
    for place, name in enumerate(criteria):
        began = time.perf_counter()
        logger.info("trial %d of %d: %s", place + 1, len(criteria), name)
        try:
            made = task.plan(name, str(task.limit))
            if made.id in plans:
                logger.info("%s: the same plan as before", name)
                continue
            model = task.press(made)
            fidelity, estimate = task.fidelity(model), task.estimate(made)
        except Exception as error:  # other criteria may go on
            yield failed(name, error, task.model)
            continue
        plans.add(made.id)
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
            best = attempt if attempt.beats(best) else best
        for place, share in enumerate(SHARES):
            if _nothing_to_gain(best):
                break
            name = f"{100 * share:.0f} % of the parameters, coded"
            logger.info("trial %d of at most %d: %s", place + 3, len(SHARES) + 2, name)
            attempt = _code(task, name, f"params={100 * share:g}%", limit, Path(folder))
            yield attempt
            if attempt.beats(best):
                best = attempt
            elif attempt.trial.failure is None:
                break
        if out is not None and best.trial.failure is None:
            with replace_file(out) as temporary:
                shutil.copyfile(Path(folder) / best.trial.name, temporary)


def _nothing_to_gain(attempt: Attempt) -> bool:
    fidelity = attempt.trial.fidelity
    if attempt.trial.failure is not None:
        return False
    return fidelity is None or fidelity.nearly_same


def _code(task: Task, name: str, budget: str | None, limit: int, folder: Path) -> Attempt:
    """Write a model, pressed first where there is a budget for that, and read it again."""
    began, made = time.perf_counter(), None
    try:
        # by the curvature of the outputs, or by weights without data
        made = None if budget is None else task.plan(next(iter(task.criteria)), budget)
        model = task.model if made is None else task.press(made)
        data = user_batches(task.fitted) if task.fitted and name != WEIGHTS_ALONE else None
        path = folder / name
        size = encode(model, path, size=limit, calibration=data, seed=task.seed).bytes
        decoded = deepcopy(model).cpu().eval()
        decoded.load_state_dict(decode(path))
        fidelity = task.fidelity(decoded)
    except Exception as error:  # other ways may go on
        return failed(name, error, task.model, made)
    return Attempt(Trial(name, made, fidelity, None, time.perf_counter() - began), decoded, size)
