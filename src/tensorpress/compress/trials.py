"""The ways in which a model is brought within a budget, each carried out and measured."""

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
from tensorpress.compress.task import LOSS, Task, count_bytes
from tensorpress.compress.verdict import FAR
from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.measure import count_macs
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
"""Examples of a step of refinement."""

MOST_MACS = 3e13
"""Most multiply–accumulates of refinement: about ten minutes on two cores."""

SHARES = (0.8, 0.6)
"""Parameters that low rank leaves before a model is coded, of the dense model's."""


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


def failed(name: str, error: Exception, model: nn.Module, made: Plan | None = None) -> Attempt:
    """Return an attempt that failed by an error, which is not allowed to lose the others."""
    reason = str(error)
    if not isinstance(error, TensorPressError):  # the model's own, or a fault of ours
        reason = f"{type(error).__name__}: {error}"
        logger.warning("%s failed", name, exc_info=error)
    return Attempt(Trial(name, made, None, failure=" ".join(reason.split())), model)


def refine_attempt(task: Task, attempt: Attempt) -> Attempt:
    """Return an attempt with its blocks refined, on as many passes as a few minutes allow."""
    began, batches = time.perf_counter(), rebatch(task.fitted, REFINED_BATCH)
    name, made = f"{attempt.trial.name}, refined", attempt.trial.plan
    try:
        epochs = _affordable_epochs(task, attempt.model)
        if epochs < 1:
            raise InvalidArgumentError(
                f"a pass over the examples multiplies more than {MOST_MACS:.0e} times"
            )
        model = deepcopy(attempt.model)
        with freeze(_skipped_parameters(task, model)):
            refine_blocks(model, task.model, batches, epochs=epochs, seed=task.seed)
        fidelity = task.fidelity(model)
    except Exception as error:  # what was tried before must not be lost
        return failed(name, error, attempt.model, made)
    seconds = time.perf_counter() - began
    return Attempt(Trial(name, made, fidelity, attempt.trial.estimate, seconds), model)


def _affordable_epochs(task: Task, model: nn.Module) -> int:
    macs = 0 if task.inputs is None else count_macs(model, task.inputs)
    examples = sum(map(len, task.fitted))
    # Forward and back a pass multiplies thrice as much, once by blocks, once as a whole.
    return min(EPOCHS, int(MOST_MACS / max(6 * macs * examples, 1)))


def _skipped_parameters(task: Task, model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the layers that are to be skipped, and of all that is in them."""
    modules = [name for name, _ in task.model.named_modules() if name]
    names = [*modules, *(name for name, _ in task.model.named_parameters())]
    skipped = {name for pattern in task.skip for name in match_names(pattern, names, {})}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if any(name == layer or name.startswith(f"{layer}.") for layer in skipped)
    ]


def shape_trials(task: Task) -> Iterator[Attempt]:
    """Yield a pressed model for every criterion, the same plan no more than once.

    Of a language model the curvature of the loss alone is tried, as long as that does not fail.
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
        except Exception as error:  # other criteria may go on
            yield failed(name, error, task.model)
            continue
        plans.add(made.id)
        seconds = time.perf_counter() - began
        yield Attempt(Trial(name, made, fidelity, estimate, seconds), model)
        if name == LOSS:
            break


def _warn_of_estimate(task: Task, name: str, estimate: float | None) -> None:
    """Say before the work is done where the error that is expected would not do."""
    if estimate is not None and estimate > FAR:
        logger.warning(
            "%s: at %s outputs are expected to differ by %.0f %%, too much without fine-tuning",
            *(name, task.limit, 100 * estimate),
        )


def bytes_trials(
    task: Task, out: str | os.PathLike[str] | None, refine: bool = True
) -> Iterator[Attempt]:
    """Yield models coded with data and without, and pressed before as long as that helps.

    With data their biases and norms are trained where there is something to refine. Nothing is
    pressed where coding leaves the outputs nearly the same, or nothing compares them.
    """
    limit = int(task.limit.resolve(count_bytes(task.model)))
    with TemporaryDirectory() as folder:
        path = Path(folder)
        best = _code(task, "coding", limit, path, refine=refine)
        yield best
        if task.reference is not None and not _nothing_to_gain(best):
            # Calibration misjudges layers that it does not reach, such as recurrent ones.
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
    """Write a model, pressed first where there is a budget for that, and read it again."""
    began, made = time.perf_counter(), None
    try:
        # by the curvature of the loss or the outputs, or by weights without data
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
    except Exception as error:  # other ways may go on
        return failed(name, error, task.model, made)
    return Attempt(Trial(name, made, fidelity, None, time.perf_counter() - began), decoded, size)
