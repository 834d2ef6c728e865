"""How much a model loses when its layers are pressed: measured on data, one layer at a time."""

import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
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
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.registry import scheme as scheme_named
from tensorpress.sensitivity.candidates import (
    fill_scores,
    job_name,
    make_candidates,
    measuring_order,
)
from tensorpress.sensitivity.metrics import Judge, Metric
from tensorpress.sensitivity.taylor import estimate_losses
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.executors import open_executor
from tensorpress.utils.jobs import JobFolder
from tensorpress.utils.module_tree import replace_layer
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
    """Score how much a model loses by pressing each layer, for a plan within a budget.

    Layer by layer and rank by rank, one layer is replaced by its pressed version, the metric is
    measured on the batches, and the layer is put back. What is not measured is estimated from one
    backward pass (`tensorpress.sensitivity.taylor`), in proportion to what is. The model is left
    as it was.

    Parameters
    ----------
    model : nn.Module
        Dense, with trained weights.
    batches : iterable
        Calibration data: a few hundred examples of the training set, as pairs (inputs, labels) or
        inputs alone. Inputs are a Tensor or a tuple of them, the first axis being the batch. They
        are held in memory.
    metric : {"similarity", "loss", "error"} or callable
        "similarity": the squared distance of the model's outputs (logits) from the dense model's,
        relative to their squared norm. "loss": mean cross entropy. "error": misclassified examples
        in per cent. The latter two need labels, and on a few hundred training images a good model
        loses little of either, and much of that by chance. Or a function from the model to a
        number, the lower the better.
    scheme : str or sequence of str
        As for `tensorpress.plan`.
    candidates : int
        Choices for each layer and scheme: with k / (candidates + 1) of its parameters, k from 1.
    targets, skip : sequence of str
        As for `tensorpress.plan`.
    journal : path, optional
        A folder that holds every measurement, so that an interrupted run goes on. It is for one
        model and one set of batches; of the three named metrics it holds all.
    measured : int, optional
        How many choices are measured, by default all; 0 for the estimates alone. Choices are taken
        in the order in which they tell most.
    processes : int
        How many processes measure, with one thread each. A script that asks for several must start
        its work under ``if __name__ == "__main__":``.
    executor : Executor, optional
        Where choices are measured, in place of processes: any `concurrent.futures.Executor`, such
        as that of a Dask client. Its workers read the model from the journal, which they must see.

    Returns
    -------
    Scores
        Give them to `tensorpress.plan` as the ``allocation`` of a budget.

    Raises
    ------
    InvalidArgumentError
        For an unknown metric or scheme, no batches, labels that are missing or do not fit, a
        metric that is not finite, a pattern that matches nothing, nothing to press, or a journal of
        something else.
    CorruptFileError
        For a journal with a damaged file.

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
            f"candidates must be positive and measured not negative, got {candidates}, {measured}"
        )
    held = collect_batches(batches, model)
    judge = Judge(model, held, metric)
    layers, unpressed = DenseModel.from_module(model, None, None).select_layers(targets, skip)
    groups = make_candidates(layers, _one_by_one(scheme), candidates)
    if not groups:
        raise nothing_pressed_error(unpressed)
    by_job = {job_name(choice): choice for group in groups for choice in group}

    with ExitStack() as stack:
        workers = stack.enter_context(open_executor(processes, executor))
        folder = Path(journal or stack.enter_context(TemporaryDirectory()))
        jobs = JobFolder(folder, _subject(model, held, judge))
        first = f"estimates|{sha256(repr(sorted(by_job)).encode()).hexdigest()[:16]}"
        arguments = (model, held, groups)
        expected = jobs.run({first: arguments}, estimate_losses, title="estimates")[first]
        names = list(map(job_name, measuring_order(groups, expected)[:measured]))
        if workers is None:
            choices = {name: (model, judge, by_job[name]) for name in names}
            jobs.run(choices, _measure, title="sensitivity")
        else:
            source = str(_write_model(folder, model, judge))
            sources = {name: (source, by_job[name]) for name in names}
            jobs.run(sources, _measure_stored, title="sensitivity", executor=workers)
        found = jobs.results()
    scores = fill_scores(groups, _increases(found, judge), expected)
    return Scores(judge.name, judge.dense[judge.name], scores)


def _one_by_one(scheme: str | Sequence[str]) -> Sequence[str]:
    """Return the names of schemes; those that press layers together have no layer's score."""
    names = parse_schemes(scheme)
    for name in names:
        if scheme_named(name).joint:
            raise InvalidArgumentError(f"{name} has no ranks of single layers that could be scored")
    return names


MODEL = "model.pickle"
"""The model and its batches, for workers; written anew by every call that has workers."""

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


def _measure_stored(path: str, choice: LayerPlan) -> dict[str, float]:
    """Measure a choice in a worker, which changes its copy of the model for as long."""
    with _ONE_AT_A_TIME:
        model, judge = _read_model(path, Path(path).stat().st_mtime_ns)
        return _measure(model, judge, choice)


def _measure(model: nn.Module, judge: Judge, choice: LayerPlan) -> dict[str, float]:
    layer = model.get_submodule(choice.name)
    try:
        pressed = press_layer(layer, choice.method, choice.ranks)
        with replace_layer(model, layer, pressed) as changed:
            return judge(changed)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"layer {choice.name!r}, {choice.scheme} {choice.ranks}: {error}"
        ) from None


def _increases(found: Mapping[str, Mapping[str, float]], judge: Judge) -> dict[str, float]:
    """Return by how much the metric grew, by job."""
    return {
        name: values[judge.name] - judge.dense[judge.name]
        for name, values in found.items()
        if judge.name in values
    }


def _subject(model: nn.Module, batches: Sequence[Batch], judge: Judge) -> dict[str, str]:
    """Return what a journal is about."""
    state = model.state_dict()
    names = sha256("\n".join(state).encode()).hexdigest()[:16]
    return {
        "layers": names,
        "weights": fingerprint(state.values()),
        "batches": digest(batches),
        "metric": judge.kind,
    }
