"""Compression of a model within a budget: ways compete, and the nearest outputs win."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor, nn

from tensorpress.calibrate.batches import CalibrationBatch, collect_batches
from tensorpress.compress.fidelity import Fidelity
from tensorpress.compress.result import CompressResult, Trial
from tensorpress.compress.trials import Attempt, Task, bytes_trials, shape_trials
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.budget import Budget, parse_budget
from tensorpress.planning.planner import lost_layers
from tensorpress.reconstruct.unfitted import unfitted_layers

logger = logging.getLogger("tensorpress.compress")


def compress(
    model: nn.Module,
    budget: str,
    calibration: Iterable[CalibrationBatch] | None = None,
    *,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    out: str | os.PathLike[str] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    targets: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    refine: bool = True,
    seed: int = 0,
) -> CompressResult:
    """Compress a model to a budget in the way that keeps its outputs best.

    With calibration data several ways compete: the criteria by which a budget of parameters, MACs
    or milliseconds is spread over layers, and for bytes of a file also rounding and entropy coding
    of the dense model and of models pressed first. Each is planned (`tensorpress.plan`), pressed
    with its layers fitted to responses (`tensorpress.press`) or coded (`tensorpress.encode`), and
    the outputs are compared with the dense model's on a fifth of the data that nothing was fitted
    to (`tensorpress.fidelity`). The nearest is returned. Without data the weights alone decide.

    Parameters
    ----------
    model : nn.Module
        Dense, with trained weights; left untouched.
    budget : str
        What the model may cost: ``bytes=25%`` (of a file), ``params=50%``, ``macs=300M``,
        ``latency=12ms``; see `tensorpress.planning.budget.parse_budget`.
    calibration : iterable, optional
        Batches of inputs as for `tensorpress.press`, a few hundred examples. Labels are used for
        the loss that is reported, and for nothing else.
    example_inputs : Tensor or sequence of Tensor, optional
        Arguments of one forward pass, the first axis being the batch: for MACs and latency. By
        default the first example of the calibration data.
    out : path-like, optional
        The `.tpz` file for a budget of bytes.
    evaluate : callable, optional
        A function from a model to the number that matters to you, reported before and after.
    targets, skip : sequence of str
        As for `tensorpress.plan`; of a budget of bytes the layers that may be pressed.
    refine : bool
        Whether to train blocks of the best pressed model, without labels, to give the outputs of
        the dense blocks (`tensorpress.reconstruct.block_refinement`). A fifth of the data stops
        that before it makes things worse.
    seed : int
        Of all that is drawn.

    Returns
    -------
    CompressResult
        The model, its costs and its fidelity, and all that was tried.

    Raises
    ------
    InvalidArgumentError
        If the budget cannot be met in any way, with the reasons; and for what `tensorpress.plan`,
        `tensorpress.press` and `tensorpress.encode` raise.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> result = compress(net, "params=50%", [torch.randn(512, 64)])
    >>> result.costs["params"][1] <= 0.5 * result.costs["params"][0]
    True
    """
    began = time.perf_counter()
    limit = parse_budget(budget)
    batches = None if calibration is None else collect_batches(calibration, model)
    task = Task.make(model, limit, example_inputs, batches, targets, skip, seed)
    attempts = bytes_trials(task, out) if limit.kind == "bytes" else shape_trials(task)
    best, trials = _run(task, attempts, refine and limit.kind != "bytes")
    warnings = _data_warnings(task)
    if best.trial.plan is not None and task.reference is None:
        warnings += lost_layers(best.trial.plan.layers)
    warnings += [
        f"layer {name} was not fitted to the data: {reason}"
        for name, reason in unfitted_layers(best.model).items()
    ]
    metric = None if evaluate is None else (float(evaluate(model)), float(evaluate(best.model)))
    return CompressResult(
        best.model,
        str(limit),
        best.trial,
        trials,
        task.costs(best),
        before=task.before(best.trial.plan) if best.size is None else None,
        metric=metric,
        file=None if out is None or best.size is None else Path(out),
        warnings=tuple(warnings),
        advice=tuple(_advice(limit, best.trial.fidelity)),
        seconds=time.perf_counter() - began,
    )


def _run(
    task: Task, attempts: Iterable[Attempt], refine: bool
) -> tuple[Attempt, tuple[Trial, ...]]:
    """Return the best of all attempts, of which no more than two are in memory, and all trials."""
    best, trials = None, []
    for attempt in attempts:
        trials.append(attempt.trial)
        logger.info("%s", attempt.trial.summary)
        if attempt.trial.failure is None and (best is None or attempt.distance < best.distance):
            best = attempt
    if best is None:
        reasons = "; ".join(dict.fromkeys(trial.failure or "" for trial in trials))
        raise InvalidArgumentError(f"the budget {task.limit} cannot be met: {reasons}")
    if refine and task.reference is not None:
        attempt = task.refine(best)
        trials.append(attempt.trial)
        logger.info("%s", attempt.trial.summary)
        if attempt.distance < best.distance:
            best = attempt
    return best, tuple(trials)


def _data_warnings(task: Task) -> list[str]:
    if task.reference is None:
        return [
            "no calibration data: ranks follow from weights alone, and outputs are not compared"
        ]
    if sum(map(len, task.fitted)) == 1:
        return ["one example alone: the outputs are compared on what layers were fitted to"]
    return []


def _advice(limit: Budget, fidelity: Fidelity | None) -> list[str]:
    """Return what to try where outputs are too far from the dense model's."""
    if fidelity is None or fidelity.usable:
        return []
    if limit.kind == "bytes":
        return ["a larger budget of bytes", "training for size: tensorpress.train_for_size"]
    return [
        "fine-tuning: tensorpress.finetune with the dense model as teacher",
        f"a larger budget of {limit.kind}",
        "a budget of bytes where size is what counts: rounding and entropy coding keep outputs "
        "better than low rank at the same size",
    ]
