"""The methods of meeting a budget, each tried and measured."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from tensorpress.calibrate.examples import rebatch
from tensorpress.compress.result import Trial
from tensorpress.compress.split import user_batches
from tensorpress.compress.task import LOSS, Task
from tensorpress.compress.verdict import FAR
from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.measure import count_bytes, count_macs
from tensorpress.measure.cost import freeze
from tensorpress.planning.layers import match_names
from tensorpress.planning.plan import Plan
from tensorpress.quantize.encode import decode, encode
from tensorpress.reconstruct.block_refinement import refine_blocks
from tensorpress.schemes.folding import fold
from tensorpress.utils.atomic_files import replace_file

logger = logging.getLogger("tensorpress.compress")

EPOCHS = 10
"""Most passes of refinement over the examples."""

REFINED_BATCH = 32
"""Examples per step of refinement."""

MOST_MACS = 3e13
"""Most multiply–accumulates of refinement: about ten minutes on two cores."""

SHARES = (0.8, 0.6)
"""Shares of the parameters to which models are pressed before coding."""


@dataclass(frozen=True)
class Attempt:
    """A trial with its model, and the size of the file if it was coded."""

    trial: Trial
    model: nn.Module
    size: int | None = None

    def beats(self, other: "Attempt | None") -> bool:
        """Tell whether this attempt is better than another: it succeeded, and is nearer.

        The first attempt wins if outputs were not compared.
        """
        if self.trial.failure is not None or other is None or other.trial.failure is not None:
            return self.trial.failure is None
        return self._order < other._order

    @property
    def _order(self) -> tuple[float, float]:
        return (inf, inf) if self.trial.fidelity is None else self.trial.fidelity.order


def failed(name: str, error: Exception, model: nn.Module, made: Plan | None = None) -> Attempt:
    """Return a failed attempt, so that one error does not end all trials."""
    reason = str(error)
    if not isinstance(error, TensorPressError):  # an error of the model, or a bug
        reason = f"{type(error).__name__}: {error}"
        logger.warning("%s failed", name, exc_info=error)
    return Attempt(Trial(name, made, None, failure=" ".join(reason.split())), model)


def refine_attempt(task: Task, attempt: Attempt) -> Attempt:
    """Return an attempt with refined blocks, by as many passes as fit `MOST_MACS`."""
    began, batches = time.perf_counter(), rebatch(task.fitted, REFINED_BATCH)
    name, made = f"{attempt.trial.name}, refined", attempt.trial.plan
    try:
        epochs = _affordable_epochs(task, attempt.model)
        if epochs < 1:
            raise InvalidArgumentError(
                f"a pass over the examples takes more than {MOST_MACS:.0e} MACs"
            )
        model = deepcopy(attempt.model)
        with freeze(_skipped_parameters(task, model)):
            refine_blocks(model, task.model, batches, epochs=epochs, seed=task.seed)
        fidelity = task.fidelity(model)
    except Exception as error:  # keeps the result of the trials before
        return failed(name, error, attempt.model, made)
    seconds = time.perf_counter() - began
    return Attempt(Trial(name, made, fidelity, attempt.trial.estimate, seconds), model)


def _affordable_epochs(task: Task, model: nn.Module) -> int:
    macs = 0 if task.inputs is None else count_macs(model, task.inputs)
    examples = sum(map(len, task.fitted))
    # Forward and backward take 3 times the MACs, once for blocks and once for the model.
    return min(EPOCHS, int(MOST_MACS / max(6 * macs * examples, 1)))


def _skipped_parameters(task: Task, model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the skipped layers and of all modules in them."""
    modules = [name for name, _ in task.model.named_modules() if name]
    names = [*modules, *(name for name, _ in task.model.named_parameters())]
    skipped = {name for pattern in task.skip for name in match_names(pattern, names, {})}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if any(name == layer or name.startswith(f"{layer}.") for layer in skipped)
    ]


def shape_trials(task: Task) -> Iterator[Attempt]:
    """Yield a pressed model per criterion, without repeating equal plans.

    For a language model only the curvature of the loss is tried, unless that fails.
    """
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
            estimate = task.estimate(made)
            _warn_of_estimate(task, name, estimate)
            model = task.press(made, name)
            fidelity = task.fidelity(model)
        except Exception as error:  # tries the other criteria
            yield failed(name, error, task.model)
            continue
        plans.add(made.id)
        seconds = time.perf_counter() - began
        yield Attempt(Trial(name, made, fidelity, estimate, seconds), model)
        if name == LOSS:
            break


def _warn_of_estimate(task: Task, name: str, estimate: float | None) -> None:
    """Warn before the work is done if the expected error is too large."""
    if estimate is not None and estimate > FAR:
        logger.warning(
            "%s: at %s outputs are expected to differ by %.0f %%, too much without fine-tuning",
            *(name, task.limit, 100 * estimate),
        )


def bytes_trials(
    task: Task, out: str | os.PathLike[str] | None, refine: bool = True
) -> Iterator[Attempt]:
    """Yield models coded with and without data, then pressed and coded as long as that helps.

    With data, biases and norms are trained after rounding. Nothing is pressed if coding leaves
    outputs nearly the same, or there are no data to compare them.
    """
    limit = int(task.limit.resolve(count_bytes(task.model)))
    with TemporaryDirectory() as folder:
        path = Path(folder)
        best = _code(task, "coding", limit, path, refine=refine)
        yield best
        if task.reference is not None and not _nothing_to_gain(best):
            # Calibration misjudges layers that it does not reach.
            attempt = _code(task, "coding, by weights alone", limit, path, calibrated=False)
            yield attempt
            best = attempt if attempt.beats(best) else best
        for place, share in enumerate(SHARES):
            if _nothing_to_gain(best):
                break
            name = f"{100 * share:.0f} % of the parameters, coded"
            logger.info("trial %d of at most %d: %s", place + 3, len(SHARES) + 2, name)
            part = f"params={100 * share:g}%"
            attempt = _code(task, name, limit, path, budget=part, refine=refine)
            yield attempt
            if attempt.beats(best):
                best = attempt
            elif attempt.trial.failure is None:
                break
        if out is not None and best.trial.failure is None:
            with replace_file(out) as temporary:
                shutil.copyfile(path / best.trial.name, temporary)


def _nothing_to_gain(attempt: Attempt) -> bool:
    fidelity = attempt.trial.fidelity
    if attempt.trial.failure is not None:
        return False
    return fidelity is None or fidelity.nearly_same


def _code(
    task: Task,
    name: str,
    limit: int,
    folder: Path,
    *,
    budget: str | None = None,
    calibrated: bool = True,
    refine: bool = False,
) -> Attempt:
    """Press a model if there is a budget for that, write it coded, and read it back."""
    began, made = time.perf_counter(), None
    try:
        # curvature of the loss or of the outputs; weight error without data
        criterion = next(iter(task.criteria))
        made = None if budget is None else task.plan(criterion, budget)
        model = fold(task.model) if made is None else task.press(made, criterion)
        data = user_batches(task.fitted) if task.fitted and calibrated else None
        passes = _affordable_epochs(task, model) if refine and task.refines else 0
        how: dict[str, Any] = {"calibration": data, "passes": passes, "seed": task.seed}
        size = encode(model, folder / name, size=limit, **how).bytes
        decoded = deepcopy(model).cpu().eval()
        decoded.load_state_dict(decode(folder / name))
        fidelity = task.fidelity(decoded)
    except Exception as error:  # tries the other methods
        return failed(name, error, task.model, made)
    return Attempt(Trial(name, made, fidelity, None, time.perf_counter() - began), decoded, size)
