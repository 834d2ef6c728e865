"""The training task: inputs, labels, loss and metric of a batch."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import convert_to_fp32, send_to_device
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.calibrate.batches import CalibrationBatch, split_batch
from tensorpress.calibrate.outputs import LOGITS
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.model_inputs import ModelInputs, quote_model_errors
from tensorpress.utils.module_tree import unwrap

Loss = Callable[[Any, Any], Tensor]
"""Function of a model's outputs and the original batch on the model's device."""

Metric = Callable[[Any, Any], Tensor | float]
"""Function of the same arguments that returns a number, or a Tensor with one per example."""

LABELS = "labels"
"""The argument for labels of models that compute their loss, and the key of labels in a batch."""

IGNORED = -100
"""The label to ignore, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True)
class TaskBatch:
    """A batch on the device of the model.

    Attributes
    ----------
    content : Any
        The original batch.
    inputs : ModelInputs
        Arguments of the model.
    labels : Any
        The targets of the outputs, or None.
    """

    content: Any
    inputs: ModelInputs
    labels: Any

    def run(self, model: nn.Module, network: Callable[..., Any] | None = None) -> Any:
        """Return the outputs of a model, or of a wrapper such as DistributedDataParallel.

        Raises
        ------
        InvalidArgumentError
            If the model fails on the inputs.
        """
        named = dict(self.inputs.named)
        if self.labels is not None and self._takes_labels(model):
            named[LABELS] = self.labels
        with quote_model_errors(self.inputs):
            return (network or model)(*self.inputs.positional, **named)

    def _takes_labels(self, model: nn.Module) -> bool:
        """Return whether forward takes ``labels``, or any argument if the batch is a mapping."""
        try:
            parameters = inspect.signature(unwrap(model).forward).parameters.values()
        except (TypeError, ValueError):  # compiled functions have no signature
            return False
        any_name = isinstance(self.content, Mapping)
        return any(p.name == LABELS or (any_name and p.kind is p.VAR_KEYWORD) for p in parameters)


@dataclass(frozen=True)
class Outcome:
    """The loss and the error of a batch.

    Attributes
    ----------
    loss : Tensor or None
        Mean loss; None if there are no labels and the task has no loss.
    count : Tensor
        Number of labels that are not ignored, or of examples if labels are not classes.
    wrong : Tensor or None
        Number of misclassified labels; None if labels are not classes.
    """

    loss: Tensor | None
    count: Tensor
    wrong: Tensor | None

    def sums(self) -> Tensor:
        """Return loss, errors and count, summed over the batch; NaN stands for None."""
        loss = self.count.new_full((), torch.nan, dtype=torch.float32)
        if self.loss is not None:
            loss = torch.where(self.count > 0, self.loss.detach() * self.count, 0)
        wrong = torch.full_like(loss, torch.nan) if self.wrong is None else self.wrong
        return torch.stack([loss, wrong.to(loss.dtype), self.count.to(loss.dtype)])


@dataclass(frozen=True)
class Task:
    """The loss and the metric of a training run.

    Batches have the same forms as calibration data: a pair (inputs, labels), a mapping with the
    key ``labels``, or inputs only.

    Attributes
    ----------
    loss : callable or None
        Function of the outputs and the batch that returns the mean loss. None stands for the
        ``loss`` that the model returns, if any. Otherwise it stands for the cross entropy if labels
        are integers with the outputs' shape less the class axis (the last of two or three axes,
        else the second), or the mean squared error if labels are real numbers with the outputs'
        shape.
    metric : callable or None
        Function of the outputs and the batch that returns a number, or a Tensor with a number for
        each example (or token, or pixel). Validation averages them.

    Examples
    --------
    >>> task = Task()
    >>> batch = task.read((torch.eye(4), torch.tensor([0, 1, 2, 2])), torch.device("cpu"))
    >>> outcome = task.outcome(nn.Identity()(*batch.inputs.positional), batch)
    >>> int(outcome.wrong), int(outcome.count), round(outcome.loss.item(), 3)
    (1, 4, 0.994)
    """

    loss: Loss | None = None
    metric: Metric | None = None

    @property
    def loss_name(self) -> str | None:
        """The name of a loss that the user passed, or None."""
        if self.loss is None:
            return None
        return getattr(self.loss, "__qualname__", type(self.loss).__qualname__)

    def read(
        self, batch: CalibrationBatch, device: torch.device, channels_last: bool = False
    ) -> TaskBatch:
        """Return a batch on a device.

        Parameters
        ----------
        batch : Tensor, sequence of two or mapping
            The batch, in any of its forms.
        device : torch.device
            The device.
        channels_last : bool
            Whether to convert inputs of four axes to the channels-last memory format.

        Raises
        ------
        InvalidArgumentError
            If it is not a batch, or the numbers of labels and inputs differ.
        """
        content = send_to_device(batch, device, non_blocking=True)
        inputs, labels = split_batch(content)
        one_each = self.loss is None and isinstance(labels, Tensor)
        if one_each and (labels.ndim == 0 or len(labels) != inputs.batch):
            raise InvalidArgumentError(
                "inputs and labels of a batch must have the same first dimension, got "
                f"{inputs} and labels of shape {tuple(labels.shape)}"
            )
        if channels_last:
            inputs = inputs.map(_channels_last)
        return TaskBatch(content, inputs, labels)

    def outcome(self, outputs: Any, batch: TaskBatch, label_smoothing: float = 0.0) -> Outcome:
        """Return the loss and the error of a model's outputs.

        Parameters
        ----------
        outputs : Any
            The outputs of the model.
        batch : TaskBatch
            The batch.
        label_smoothing : float
            Fraction of the cross entropy's target that is spread evenly over all classes.

        Raises
        ------
        InvalidArgumentError
            If the loss is not a scalar Tensor, or outputs and labels define none.
        """
        scores = find_scores(outputs)
        axis = None if scores is None else class_axis(scores, batch.labels)
        count = _count_labels(batch)
        model_loss = _model_loss(outputs)
        default = self.loss is None and model_loss is None
        if label_smoothing and not default:
            raise InvalidArgumentError(
                "label_smoothing applies only to the cross entropy of class labels, but "
                + ("the model returns its loss" if self.loss is None else "loss= is set")
            )
        if self.loss is not None:
            loss = _check_scalar(self.loss(convert_to_fp32(outputs), batch.content))
        elif model_loss is not None:
            loss = _check_scalar(model_loss)
        elif scores is not None and axis is not None:
            loss = _cross_entropy(to_float32(scores), batch.labels, axis, label_smoothing)
        elif batch.labels is None:
            return Outcome(None, count, None)
        else:
            loss = _squared_error(scores, batch.labels, outputs)
        # Labels of tokens may be shifted by one position, which only a custom loss knows.
        if scores is None or axis is None or (scores.ndim == 3 and not default):
            return Outcome(loss, count, None)
        with torch.no_grad():
            labels = batch.labels.long()
            wrong = (scores.argmax(axis) != labels) & (labels != IGNORED)
            return Outcome(loss, count, wrong.sum())

    def measure(self, outputs: Any, batch: TaskBatch) -> tuple[float, int]:
        """Return the sum of the metric over a batch, and the number of values in the sum.

        Raises
        ------
        InvalidArgumentError
            If the metric returns anything other than numbers.
        """
        assert self.metric is not None
        value = self.metric(convert_to_fp32(outputs), batch.content)
        if isinstance(value, Tensor) and value.ndim:
            return float(value.cpu().double().sum()), value.numel()
        try:
            return float(value) * batch.inputs.batch, batch.inputs.batch
        except (TypeError, ValueError):
            raise InvalidArgumentError(
                f"metric must return a number or a Tensor of numbers, got {type(value).__name__}"
            ) from None


def find_scores(outputs: Any) -> Tensor | None:
    """Return the outputs if they are a Tensor, or else their ``logits``, or None."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get(LOGITS)
    outputs = getattr(outputs, LOGITS, outputs)
    return outputs if isinstance(outputs, Tensor) else None


def class_axis(scores: Tensor, labels: Any) -> int | None:
    """Return the class axis of scores, or None if labels are not their classes.

    Examples
    --------
    >>> class_axis(torch.zeros(2, 7, 5, 5), torch.zeros(2, 5, 5, dtype=torch.long))  # pixels
    1
    >>> class_axis(torch.zeros(2, 9, 7), torch.zeros(2, 9, dtype=torch.long))  # tokens
    2
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        return None
    last = scores.ndim - 1
    for axis in (last, 1) if scores.ndim <= 3 else (1, last):
        if scores.ndim > 1 and (*scores.shape[:axis], *scores.shape[axis + 1 :]) == labels.shape:
            return axis
    return None


def class_rows(scores: Tensor, axis: int) -> Tensor:
    """Return scores as a matrix (rows, classes)."""
    return scores.movedim(axis, -1).flatten(0, -2)


def to_float32(values: Tensor) -> Tensor:
    """Return half-precision values in float32, and others unchanged."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _cross_entropy(scores: Tensor, labels: Tensor, axis: int, smoothing: float) -> Tensor:
    rows = class_rows(scores, axis)
    try:
        return functional.cross_entropy(
            rows, labels.flatten().long(), label_smoothing=smoothing, ignore_index=IGNORED
        )
    except IndexError:  # only on the CPU: on a GPU the process stops
        raise InvalidArgumentError(
            f"labels must be classes from 0 to {rows.shape[1] - 1}, one per output of the model, "
            f"or {IGNORED} to be ignored; got {int(labels.min())} to {int(labels.max())}"
        ) from None


def _squared_error(scores: Tensor | None, labels: Any, outputs: Any) -> Tensor:
    real = isinstance(labels, Tensor) and labels.is_floating_point()
    if scores is not None and real and _without_one(scores) == _without_one(labels):
        return functional.mse_loss(to_float32(scores).reshape(labels.shape), to_float32(labels))
    raise InvalidArgumentError(
        f"no loss for outputs {_describe(outputs)} and labels {_describe(labels)}: labels must be "
        "class indices (integers with the outputs' shape less the class axis) or real numbers "
        "with the outputs' shape; for anything else pass loss="
    )


def _without_one(x: Tensor) -> tuple[int, ...]:
    """Return the shape of a Tensor without a last axis of size 1."""
    return tuple(x.shape[:-1] if x.ndim > 1 and x.shape[-1] == 1 else x.shape)


def _model_loss(outputs: Any) -> Tensor | None:
    """Return the scalar ``loss`` of outputs, or None."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _check_scalar(loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InvalidArgumentError(
            f"loss must return a scalar Tensor, the mean over the batch, got {_describe(loss)}"
        )
    return to_float32(loss.squeeze())


def _count_labels(batch: TaskBatch) -> Tensor:
    """Return the number of class labels that are not ignored, or of examples."""
    labels = batch.labels
    if isinstance(labels, Tensor) and not labels.is_floating_point():
        return (labels.long() != IGNORED).sum()
    device = next((x.device for x in batch.inputs.tensors), None)
    return torch.tensor(batch.inputs.batch, device=device)


def _channels_last(x: Tensor) -> Tensor:
    # Not contiguous(), which would not change the strides of a single channel, on which the format
    # of all following layers depends.
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
