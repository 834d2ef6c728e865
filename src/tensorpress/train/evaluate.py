"""Loss and error of a classifier, exact over all examples."""

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
    """What a classifier does on a data set.

    Attributes
    ----------
    loss
        Mean cross entropy in nats.
    error
        Misclassified examples in per cent.
    examples
        How many examples were seen.
    """

    loss: float
    error: float
    examples: int


def evaluate(
    model: nn.Module, batches: Iterable[Batch], *, channels_last: bool = False
) -> Evaluation:
    """Return loss and error of a classifier over all examples, whatever the batch sizes.

    Runs in evaluation mode, without gradients, on the device the model is on; every module is
    in its former mode afterwards. With several processes the batches are shared out, each
    example is counted once, and every process gets the result over all of them.

    Parameters
    ----------
    model
        Maps inputs to logits of shape (N, classes).
    batches
        Iterable of (inputs, labels), labels being class indices of shape (N,).
    channels_last
        Give images to the model in the channels-last memory format, often faster.

    Raises
    ------
    InvalidArgumentError
        If there is no example, or a batch or the output of the model has another form.

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
            logits = checked_logits(model(inputs), labels)
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
    """Set training or evaluation mode, and give every module its own mode back at the end."""
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


def checked_logits(output: object, labels: Tensor) -> Tensor:
    """Return the output of a classifier if it fits labels of shape (N,).

    Raises
    ------
    InvalidArgumentError
        If it is not a tensor of shape (N, classes), or the labels are not N class indices.
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
    state = processes()
    if state.num_processes == 1:
        return values
    sums: Tensor = reduce(torch.tensor(values, dtype=torch.float64, device=state.device), "sum")
    return tuple(sums.tolist())
