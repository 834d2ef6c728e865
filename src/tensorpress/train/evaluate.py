"""Evaluation of a model: loss, error and metric over all examples."""

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
    """Loss, error and metric of a model on a data set.

    Attributes
    ----------
    loss : float
        Mean loss; of a classifier the cross entropy in nats.
    error : float or None
        Misclassified examples (or tokens, or pixels) in per cent; None if labels are no classes.
    examples : int
        The number of labels that count, or of examples if labels are no classes.
    metric : float or None
        Mean of the task's metric; None without one.
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

    The model runs in evaluation mode, without gradients, on its device; every module is in its
    former mode afterwards. With several processes each evaluates a share of the batches, every
    example counts once, and all processes get the same result.

    Parameters
    ----------
    model : nn.Module
        A model.
    batches : iterable
        Pairs (inputs, labels), or mappings with ``labels``.
    task : Task, optional
        The loss and the metric; by default the loss that fits labels and outputs.
    channels_last : bool
        Whether the model gets images in the channels-last memory format, which is often faster.

    Raises
    ------
    InvalidArgumentError
        If there is no example, or a batch and the model's outputs define no loss.

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
                    "a batch without labels defines no loss: give (inputs, labels), a mapping with "
                    "labels, or a loss"
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
            "there is no example to evaluate on: batches is empty, or an iterator that was used "
            "before"
        )
    return Evaluation(
        loss / count,
        None if math.isnan(wrong) else 100 * wrong / count,
        int(count),
        metric / n_values if n_values else None,
    )


@contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set a model's mode for the length of a block; at the end every module has its former one."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _sum_over_processes(*values: float) -> tuple[float, ...]:
    """Return the sum of each value over all processes."""
    state = processes()
    if state.num_processes == 1:
        return values
    sums: Tensor = reduce(torch.tensor(values, dtype=torch.float64, device=state.device), "sum")
    return tuple(sums.tolist())
