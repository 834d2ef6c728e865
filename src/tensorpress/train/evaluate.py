"""Evaluation of a classifier: loss and error, exact over all examples."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.errors import InvalidArgumentError
from tensorpress.train.batches import Batch, evaluation_shard, to_device
from tensorpress.train.distillation import to_float32
from tensorpress.train.processes import processes


@dataclass(frozen=True)
class Evaluation:
    """Loss and error of a classifier on a data set.

    Attributes
    ----------
    loss : float
        Mean cross entropy in nats.
    error : float
        Misclassified examples in per cent.
    examples : int
        The number of examples.
    """

    loss: float
    error: float
    examples: int


def evaluate(
    model: nn.Module, batches: Iterable[Batch], *, channels_last: bool = False
) -> Evaluation:
    """Return loss and error of a classifier over all examples, whatever the batch sizes.

    The model runs in evaluation mode, without gradients, on its device; every module is in its
    former mode afterwards. With several processes each evaluates a share of the batches, every
    example counts once, and all processes get the same result.

    Parameters
    ----------
    model : nn.Module
        A classifier, which maps inputs to logits of shape (examples, classes).
    batches : iterable
        Pairs (inputs, labels); labels are class indices of shape (examples,).
    channels_last : bool
        Whether the model gets images in the channels-last memory format, which is often faster.

    Raises
    ------
    InvalidArgumentError
        If there is no example, or a batch or the model's output is not as described.

    Examples
    --------
    >>> inputs, labels = torch.eye(4), torch.tensor([0, 1, 2, 2])
    >>> evaluate(nn.Identity(), [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])]).error
    25.0
    """
    first = next(chain(model.parameters(), model.buffers()), None)
    device = first.device if first is not None else torch.device("cpu")
    losses: list[Tensor] = []
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    examples = 0
    with training_mode(model, False), torch.no_grad():
        for batch in evaluation_shard(batches):
            inputs, labels = to_device(batch, device, channels_last)
            logits = check_logits(model(inputs), labels)
            losses.append(functional.cross_entropy(to_float32(logits), labels, reduction="sum"))
            wrong += count_wrong(logits, labels)
            examples += len(labels)
    loss_sum = math.fsum(torch.stack(losses).tolist()) if losses else 0.0
    loss_sum, n_wrong, n_examples = _sum_over_processes(loss_sum, int(wrong), examples)
    if not n_examples:
        raise InvalidArgumentError("there is no example to evaluate on: batches is empty")
    return Evaluation(loss_sum / n_examples, 100 * n_wrong / n_examples, int(n_examples))


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


def count_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of misclassified examples as a scalar tensor, without a device sync."""
    return (logits.argmax(dim=1) != labels).sum()


def check_logits(output: object, labels: Tensor) -> Tensor:
    """Return the output of a classifier after checking it against the labels.

    Raises
    ------
    InvalidArgumentError
        If the output is not a tensor of shape (examples, classes), or the labels are not class
        indices of shape (examples,).
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise InvalidArgumentError(
            "labels must be class indices, integers of shape (N,), got "
            f"{labels.dtype} of shape {tuple(labels.shape)}"
        )
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(labels):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InvalidArgumentError(
            f"the model must return logits of shape ({len(labels)}, classes), got {got}"
        )
    return output


def _sum_over_processes(*values: float) -> tuple[float, ...]:
    """Return the sum of each value over all processes."""
    state = processes()
    if state.num_processes == 1:
        return values
    sums: Tensor = reduce(torch.tensor(values, dtype=torch.float64, device=state.device), "sum")
    return tuple(sums.tolist())
