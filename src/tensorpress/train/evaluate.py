"""Evaluation of a model: mean loss, error and metric over all examples."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from tensorpress.calibrate.batches import check_batches
from tensorpress.errors import InvalidArgumentError
from tensorpress.train.batches import Batch, evaluation_shard
from tensorpress.train.processes import processes
from tensorpress.train.task import Task


@dataclass(frozen=True)
class Evaluation:
    """Loss, error and metric of a model on a dataset.

    Attributes
    ----------
    loss : float
        Mean loss; for a classifier the cross entropy in nats.
    error : float or None
        Misclassified examples (or tokens, or pixels) in percent; None if labels are not classes.
    examples : int
        Number of labels that are not ignored, or of examples if labels are not classes.
    metric : float or None
        Mean of the task's metric, or None if it has none.
    """

    loss: float
    error: float | None
    examples: int
    metric: float | None = None


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    task: Task | None = None,
    channels_last: bool = False,
) -> Evaluation:
    """Return loss, error and metric of a model over all examples, whatever the batch sizes.

    The model runs in eval mode, without gradients, on its device; afterwards every module is back
    in its previous mode. With several processes, each evaluates a part of the batches, and all get
    the same result.

    Parameters
    ----------
    model : nn.Module
        A model.
    batches : iterable
        Pairs (inputs, labels), or mappings with ``labels``.
    task : Task, optional
        Loss and metric; by default the loss that fits the labels and outputs.
    channels_last : bool
        Whether to pass images in the channels-last memory format, which is often faster.

    Raises
    ------
    InvalidArgumentError
        If there are no examples, or the labels and outputs of a batch define no loss.

    Examples
    --------
    >>> inputs, labels = torch.eye(4), torch.tensor([0, 1, 2, 2])
    >>> evaluate(nn.Identity(), [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])]).error
    25.0
    """
    check_batches(batches)
    task = task or Task()
    first = next(chain(model.parameters(), model.buffers()), None)
    device = first.device if first is not None else torch.device("cpu")
    sums: list[Tensor] = []
    metric, values = 0.0, 0
    with training_mode(model, False), torch.no_grad():
        for content in evaluation_shard(batches):
            batch = task.read(content, device, channels_last)
            outputs = batch.run(model)
            outcome = task.outcome(outputs, batch)
            if outcome.loss is None:
                raise InvalidArgumentError(
                    "a batch without labels has no loss: pass (inputs, labels), a mapping with the "
                    "key labels, or a loss"
                )
            sums.append(outcome.sums())
            if task.metric is not None:
                total, number = task.measure(outputs, batch)
                metric, values = metric + total, values + number
    loss, wrong, count = (
        map(math.fsum, zip(*torch.stack(sums).tolist(), strict=True)) if sums else (0.0, 0.0, 0.0)
    )
    loss, wrong, count, metric, n_values = _sum_over_processes(loss, wrong, count, metric, values)
    if not count:
        raise InvalidArgumentError(
            "there are no examples to evaluate: batches is empty, or an iterator that is exhausted"
        )
    return Evaluation(
        loss / count,
        None if math.isnan(wrong) else 100 * wrong / count,
        int(count),
        metric / n_values if n_values else None,
    )


@contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set the mode of a model in a block; afterwards every module is back in its previous mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _sum_over_processes(*values: float) -> tuple[float, ...]:
    state = processes()
    if state.num_processes == 1:
        return values
    sums: Tensor = reduce(torch.tensor(values, dtype=torch.float64, device=state.device), "sum")
    return tuple(sums.tolist())
