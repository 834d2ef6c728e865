"""Compresses a model to a budget: several methods compete, and the nearest outputs win."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from tensorpress.calibrate.batches import CalibrationBatch, collect_batches
from tensorpress.compress.data_warnings import FewRows, collect_few_rows
from tensorpress.compress.result import CompressResult, Trial
from tensorpress.compress.split import HELD_OUT, LEAST_HALF
from tensorpress.compress.task import CURVATURE, Task
from tensorpress.compress.trials import Attempt, bytes_trials, refine_attempt, shape_trials
from tensorpress.compress.verdict import CLOSE, LEAST, Fidelity
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.model_inputs import ExampleInputs
from tensorpress.planning.budget import Budget, parse_budget
from tensorpress.planning.planner import lost_layers
from tensorpress.reconstruct.unfitted import unfitted_layers
from tensorpress.utils.atomic_files import check_writable
from tensorpress.utils.module_tree import unwrap

logger = logging.getLogger("tensorpress.compress")


def compress(
    model: nn.Module,
    budget: str,
    calibration: Iterable[CalibrationBatch] | None = None,
    *,
    example_inputs: ExampleInputs | None = None,
    out: str | os.PathLike[str] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    targets: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    refine: bool = True,
    seed: int = 0,
) -> CompressResult:
    """Compress a model to a budget by the method that keeps its outputs best.

    With calibration data, several methods compete. For a budget of parameters, MACs or
    milliseconds they are criteria that divide it among layers; for bytes of a file they are coding
    alone, and coding after pressing. Each is planned (`tensorpress.plan`), pressed with layers
    fitted to responses (`tensorpress.press`) or coded (`tensorpress.encode`), and its outputs are
    compared with the dense model's on held-out data (`tensorpress.fidelity`). A fifth of the data
    is held out: one half chooses the best method, the other judges it. The best method has the
    least divergence if outputs are known to be logits, by labels or by their name, and otherwise
    the least error. Without data, weights alone decide.

    Parameters
    ----------
    model : nn.Module
        A dense model with trained weights, left unchanged.
    budget : str
        The most that the model may cost: ``bytes=25%`` (of a file), ``params=50%``, ``macs=300M``,
        ``latency=12ms``; see `tensorpress.planning.budget.parse_budget`.
    calibration : iterable, optional
        Batches of inputs as for `tensorpress.press`, a few hundred examples. Labels only show that
        outputs are scores of classes, and give the reported loss; nothing is fitted to them.
    example_inputs : Tensor, sequence or mapping, optional
        Arguments of one forward pass, with the batch as first axis, for MACs and latency; by
        default the first example of the calibration data.
    out : path-like, optional
        The `.tpz` file to write, for a budget of bytes.
    evaluate : callable, optional
        Returns the number that matters to you for a model; it is reported for both models, and runs
        on the dense model before anything is planned.
    targets, skip : sequence of str
        As for `tensorpress.plan`. Skipped layers and frozen parameters are not changed.
    refine : bool
        Whether to train the blocks of the best pressed model, without labels, to give the outputs
        of the dense blocks (`tensorpress.reconstruct.block_refinement`), or biases and norms of
        coded models. Held-out data stop the training before it makes things worse. Language models
        are not refined, because their blocks would memorize the calibration data.
    seed : int
        Seed of all random choices.

    Returns
    -------
    CompressResult
        The model, its costs and fidelity, and all trials.

    Raises
    ------
    InvalidArgumentError
        If no method meets the budget (the message has the reasons), the dense model meets it
        (`BudgetMetError`), or `tensorpress.plan`, `tensorpress.press` or `tensorpress.encode`
        raises it.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> result = compress(net, "params=50%", [torch.randn(512, 64)])
    >>> result.costs["params"][1] <= 0.5 * result.costs["params"][0]
    True
    """
    began, model = time.perf_counter(), unwrap(model)
    limit = parse_budget(budget)
    _check_out(out, limit)
    batches = None if calibration is None else collect_batches(calibration, model)
    task = Task.make(model, limit, example_inputs, batches, targets, skip, seed)
    dense_metric = None if evaluate is None else _evaluate(evaluate, model)
    attempts = bytes_trials(task, out, refine) if limit.kind == "bytes" else shape_trials(task)
    with collect_few_rows() as few:
        best, trials = _run(task, attempts, refine and limit.kind != "bytes")
        fidelity = task.verdict(best.model)
        before = task.before(best.trial.plan) if best.size is None else None
        advice = _advice(task, trials, fidelity)
    costs = task.costs(best.model, best.size)
    warnings = _warnings(task, best, trials, few, costs)
    warnings += [
        f"layer {name} was not fitted to the data: {reason}"
        for name, reason in unfitted_layers(best.model).items()
    ]
    metric = None
    if evaluate is not None and dense_metric is not None:
        try:
            metric = dense_metric, _evaluate(evaluate, best.model)
        except Exception as error:  # the model must not be lost
            warnings.append(f"evaluate failed on the compressed model: {error}")
    return CompressResult(
        best.model,
        str(limit),
        best.trial,
        trials,
        costs,
        fidelity,
        before,
        metric=metric,
        file=None if out is None or best.size is None else Path(out),
        warnings=tuple(warnings),
        advice=tuple(advice),
        seconds=time.perf_counter() - began,
    )


def _check_out(out: str | os.PathLike[str] | None, limit: Budget) -> None:
    """Check early that the file can be written."""
    if out is None:
        return
    if limit.kind != "bytes":
        raise InvalidArgumentError(
            f"out needs a budget of bytes, not of {limit.kind}: write the model with "
            "tensorpress.save_checkpoint(result.model, folder, result.plan)"
        )
    check_writable(out)


def _evaluate(evaluate: Callable[[nn.Module], float], model: nn.Module) -> float:
    value = evaluate(model)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidArgumentError(
            f"evaluate must return a number, not {type(value).__name__}"
        ) from None


def _run(
    task: Task, attempts: Iterable[Attempt], refine: bool
) -> tuple[Attempt, tuple[Trial, ...]]:
    """Return the best attempt and all trials; at most two models are in memory at a time."""
    best: Attempt | None = None
    trials = []
    for attempt in attempts:
        trials.append(attempt.trial)
        logger.info("%s", attempt.trial.summary)
        if attempt.beats(best):
            best = attempt
    if best is None or best.trial.failure is not None:
        reasons = "; ".join(dict.fromkeys(trial.failure or "" for trial in trials))
        raise InvalidArgumentError(
            f"the budget {task.limit} cannot be met: {reasons}{task.limit.percent_hint}"
        )
    if refine and task.refines:
        logger.info("refinement of %s", best.trial.name)
        attempt = refine_attempt(task, best)
        better = attempt.beats(best)
        if not better and attempt.trial.failure is None:
            reason = "not chosen, because held-out outputs are no nearer"
            attempt = replace(attempt, trial=replace(attempt.trial, note=reason))
        trials.append(attempt.trial)
        logger.info("%s", attempt.trial.summary)
        best = attempt if better else best
    return best, tuple(trials)


def _warnings(
    task: Task,
    best: Attempt,
    trials: Sequence[Trial],
    few: FewRows,
    costs: Mapping[str, tuple[float, float]],
) -> list[str]:
    """Return warnings for the user, the most important first."""
    warnings = []
    if task.reference is None:
        warnings.append(
            "no calibration data: ranks follow from weights alone, and outputs were not compared"
        )
        if best.trial.plan is not None:
            warnings += lost_layers(best.trial.plan.layers)
    else:
        judged = sum(map(len, task.reference.batches))
        if judged < LEAST:
            warnings.append(
                f"too few examples to judge the outputs: give at least {round(LEAST / HELD_OUT)}"
                + (
                    "; layers were fitted to the one example on which outputs are compared"
                    if task.fitted[0] is task.reference.batches[0]
                    else f", of which a fifth is held out ({judged} now)"
                )
            )
        elif task.judge is task.reference and sum(t.failure is None for t in trials) > 1:
            warnings.append(
                f"the result is optimistic, because the {judged} held-out examples also chose the "
                f"best trial: give at least {round(2 * LEAST_HALF / HELD_OUT)} examples"
            )
    if few.warning is not None:
        warnings.append(few.warning)
    if "latency_ms" in costs:
        dense, compressed = costs["latency_ms"]
        if best.trial.plan is not None and compressed > 1.1 * dense:
            rebuilt = all(layer.method.form == "weight" for layer in best.trial.plan.layers)
            warnings.append(
                f"on this machine the model is slower than the dense one, {compressed:.2f} instead "
                f"of {dense:.2f} ms per pass: "
                + (
                    "its weights are rebuilt from factors at every pass; tensorpress.materialize "
                    "makes them dense again"
                    if rebuilt
                    else "several small layers have more overhead than one; a budget of latency "
                    "takes that into account"
                )
            )
        if task.limit.kind == "latency" and compressed > task.limit.resolve(dense):
            warnings.append(
                "the latency met the budget during planning, but not when measured again: times "
                "vary by a few percent"
            )
    return warnings


def _advice(task: Task, trials: Sequence[Trial], fidelity: Fidelity | None) -> list[str]:
    """Return advice if outputs are too far from the dense model's."""
    limit = task.limit
    if fidelity is None or fidelity.usable or not fidelity.enough:
        return []
    if limit.kind == "bytes":
        return ["a larger budget of bytes", "training for size: tensorpress.train_for_size"]
    plans = [trial.plan for trial in trials if trial.name == CURVATURE and trial.plan is not None]
    near = None if not plans else task.near_budget(plans[0], fidelity.error, CLOSE)
    milder = "" if near is None else f": at {near[0]} they differ by {100 * near[1]:.0f} %"
    return [
        "fine-tuning: tensorpress.finetune with the dense model as teacher",
        f"a larger budget of {limit.kind}{milder}",
        "a budget of bytes if only size counts: at the same size, rounding and entropy coding keep "
        "outputs better than low rank",
    ]
