"""Measures the loss of a model when its layers are pressed one at a time."""

import os
import pickle
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

from torch import nn

from tensorpress.calibrate.batches import Batch, CalibrationBatch, collect_batches, digest
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.fixed_ranks import nothing_pressed_error
from tensorpress.planning.planner import parse_schemes
from tensorpress.planning.scores import Scores
from tensorpress.schemes.folding import fold
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.registry import scheme as scheme_named
from tensorpress.sensitivity.candidates import (
    fill_scores,
    job_name,
    make_candidates,
    order_candidates,
)
from tensorpress.sensitivity.metrics import Judge, Metric
from tensorpress.sensitivity.taylor import estimate_losses
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.executors import open_executor
from tensorpress.utils.jobs import JobFolder
from tensorpress.utils.module_tree import replace_layer, unwrap
from tensorpress.utils.tensor_hash import fingerprint


def sensitivity(
    model: nn.Module,
    batches: Iterable[CalibrationBatch],
    *,
    metric: Metric = "similarity",
    scheme: str | Sequence[str] = "auto",
    candidates: int = 9,
    targets: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    journal: str | os.PathLike[str] | None = None,
    measured: int | None = None,
    processes: int = 1,
    executor: Executor | None = None,
) -> Scores:
    """Score the loss of a model by pressing each layer, for a plan within a budget.

    Layers are pressed one at a time, each at several ranks, and the metric is measured on the
    batches. Losses that are not measured are estimated by one backward pass
    (`tensorpress.sensitivity.taylor`), scaled to the measured ones.

    Parameters
    ----------
    model : nn.Module
        A dense model with trained weights, left unchanged.
    batches : iterable
        Calibration data: a few hundred examples of the training set, as pairs (inputs, labels) or
        inputs alone. Inputs are a Tensor or a tuple of them, the first axis being the batch. All
        batches are in memory at once.
    metric : {"similarity", "loss", "error"} or callable
        "similarity": the squared distance of the model's outputs (logits) from the dense model's,
        relative to their squared norm. "loss": mean cross entropy. "error": misclassified examples
        in percent. Loss and error need labels, and hardly change on a few hundred training images
        that the model has learned. A callable returns a number for a model; lower is better.
    scheme : str or sequence of str
        One or more schemes, as for `tensorpress.plan`.
    candidates : int
        Number of candidates per layer and scheme, with k / (candidates + 1) of its parameters.
    targets, skip : sequence of str
        Layers to score, as for `tensorpress.plan`.
    journal : path, optional
        A folder for the measurements, from which an interrupted run continues. It is for one model
        and one set of batches; all three named metrics share it.
    measured : int, optional
        Number of candidates to measure, by default all; 0 for estimates alone.
    processes : int
        Number of processes, with one thread each. With more than one, a script must start its work
        under ``if __name__ == "__main__":``.
    executor : Executor, optional
        Runs the measurements instead of processes: any `concurrent.futures.Executor`, such as one
        of a Dask client. Workers read the model from the journal, which must be on a shared disk.

    Returns
    -------
    Scores
        The scores, for the ``allocation`` of `tensorpress.plan`.

    Raises
    ------
    InvalidArgumentError
        If a metric or scheme is unknown, there are no batches, labels are missing or do not fit,
        the metric is not finite, a pattern matches nothing, nothing can be pressed, or the journal
        belongs to another model or other batches.
    CorruptFileError
        If a file of the journal is damaged.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    >>> data = [(torch.randn(50, 20), torch.randint(4, (50,)))]
    >>> scores = sensitivity(net, data, candidates=2)
    >>> [len(choices) for choices in scores.layers.values()]
    [2, 2]
    """
    if candidates < 1 or (measured is not None and measured < 0):
        raise InvalidArgumentError(
            f"candidates must be at least 1 and measured at least 0, not {candidates}, {measured}"
        )
    model = fold(unwrap(model))
    data = collect_batches(batches, model)
    judge = Judge(model, data, metric)
    layers, unpressed = DenseModel.from_module(model, None, None).select_layers(targets, skip)
    schemes = parse_schemes(scheme)
    for name in schemes:
        if scheme_named(name).joint:
            raise InvalidArgumentError(
                f"{name} chooses all ranks together, so layers cannot be scored"
            )
    groups = make_candidates(layers, schemes, candidates)
    if not groups:
        raise nothing_pressed_error(unpressed)
    by_job = {job_name(plan): plan for group in groups for plan in group}

    with ExitStack() as stack:
        workers = stack.enter_context(open_executor(processes, executor))
        folder = Path(journal or stack.enter_context(TemporaryDirectory()))
        jobs = JobFolder(folder, _describe_journal(model, data, judge))
        first = f"estimates|{sha256(repr(sorted(by_job)).encode()).hexdigest()[:16]}"
        arguments = (model, data, groups)
        estimates = jobs.run({first: arguments}, estimate_losses, title="estimates")[first]
        names = list(map(job_name, order_candidates(groups, estimates)[:measured]))
        if workers is None:
            local = {name: (model, judge, by_job[name]) for name in names}
            jobs.run(local, _measure, title="sensitivity")
        else:
            path = str(_write_model(folder, model, judge))
            remote = {name: (path, by_job[name]) for name in names}
            jobs.run(remote, _measure_stored, title="sensitivity", executor=workers)
        results = jobs.results()
    dense = judge.dense[judge.name]
    increases = {
        name: values[judge.name] - dense for name, values in results.items() if judge.name in values
    }
    return Scores(judge.name, dense, fill_scores(groups, increases, estimates))


MODEL = "model.pickle"
"""The file of the model and its batches, written for workers."""

_ONE_AT_A_TIME = Lock()


def _write_model(folder: Path, model: nn.Module, judge: Judge) -> Path:
    try:
        data = pickle.dumps((model, judge))
    except Exception as error:
        raise InvalidArgumentError(
            f"the model or the metric cannot be sent to other processes: {error}"
        ) from None
    write_atomically(folder / MODEL, data)
    return (folder / MODEL).absolute()


@lru_cache(maxsize=1)
def _read_model(path: str, modified: int) -> tuple[nn.Module, Judge]:
    model, judge = pickle.loads(Path(path).read_bytes())
    return model, judge


def _measure_stored(path: str, plan: LayerPlan) -> dict[str, float]:
    """Measure a candidate in a worker; its threads share one copy of the model."""
    with _ONE_AT_A_TIME:
        model, judge = _read_model(path, Path(path).stat().st_mtime_ns)
        return _measure(model, judge, plan)


def _measure(model: nn.Module, judge: Judge, plan: LayerPlan) -> dict[str, float]:
    layer = model.get_submodule(plan.name)
    try:
        pressed = press_layer(layer, plan.method, plan.ranks)
        with replace_layer(model, layer, pressed) as changed:
            return judge(changed)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"layer {plan.name!r}, {plan.scheme} {plan.ranks}: {error}"
        ) from None


def _describe_journal(model: nn.Module, batches: Sequence[Batch], judge: Judge) -> dict[str, str]:
    """Return the subject of a journal: model, batches and metric."""
    state = model.state_dict()
    names = sha256("\n".join(state).encode()).hexdigest()[:16]
    return {
        "layers": names,
        "weights": fingerprint(state.values()),
        "batches": digest(batches),
        "metric": judge.kind,
    }
