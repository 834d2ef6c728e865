"""The error of a classifier whose inputs may have any form."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.calibrate.batches import Batch, collect_batches, model_outputs
from tensorpress.data.model_batches import NO_LABEL
from tensorpress.errors import InvalidArgumentError, ModelRunError
from tensorpress.measure.cost import evaluation_mode
from tensorpress.models.inputs import input_error


@dataclass(frozen=True)
class Classification:
    """Mean cross entropy in nats, error in percent, and number of examples."""

    loss: float
    error: float
    examples: int


def classification_error(model: nn.Module, batches: Iterable[Any]) -> Classification:
    """Return loss and error of a classifier over all examples.

    Parameters
    ----------
    model : nn.Module
        A classifier that returns logits of shape (examples, classes), or an object with ``logits``.
    batches : iterable
        Pairs (inputs, labels), or mappings from argument names with ``labels``. Labels are class
        indices of shape (examples,).

    Raises
    ------
    InvalidArgumentError
        If there are no examples or labels, a label is not a class of the model, or the model fails
        on the inputs or returns anything else.

    Examples
    --------
    >>> classification_error(nn.Identity(), [(torch.eye(4), torch.tensor([0, 1, 2, 2]))]).error
    25.0
    """
    losses, wrong, examples = [], 0, 0
    with evaluation_mode(model), torch.no_grad():
        for single in batches:
            [batch] = collect_batches([single], model)
            if batch.labels is None:
                raise InvalidArgumentError(
                    "the data have no labels, which measuring an error needs"
                )
            logits = _outputs(model, batch)
            _check_classes(logits, batch.labels, examples)
            losses.append(float(functional.cross_entropy(logits, batch.labels, reduction="sum")))
            wrong += int((logits.argmax(1) != batch.labels).sum())
            examples += len(batch.labels)
    if not examples:
        raise InvalidArgumentError("there are no examples to evaluate")
    return Classification(math.fsum(losses) / examples, 100 * wrong / examples, examples)


def _check_classes(logits: Tensor, labels: Tensor, before: int) -> None:
    """Check that labels are class indices, one per example, and logits are class scores.

    ``before`` is the number of earlier examples.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise InvalidArgumentError(
            "labels must be class indices, integers of shape (N,), got "
            f"{labels.dtype} of shape {tuple(labels.shape)}"
        )
    if logits.ndim != 2 or len(logits) != len(labels):
        raise InvalidArgumentError(
            f"the model returns {tuple(logits.shape)} for a batch of {len(labels)} labels: "
            f"expected scores of shape ({len(labels)}, classes)"
        )
    undefined = logits.isnan().any(1).nonzero()
    if len(undefined):
        raise InvalidArgumentError(
            f"the model's scores of example {before + int(undefined[0]) + 1} are NaN"
        )
    missing = (labels == NO_LABEL).nonzero()
    if len(missing):
        raise InvalidArgumentError(
            f"example {before + int(missing[0]) + 1} has no label, expected one for every example"
        )
    low, high = (int(x) for x in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise InvalidArgumentError(
            f"the data have labels from {low} to {high}, but the model has {logits.shape[1]} "
            "classes"
        )


def _outputs(model: nn.Module, batch: Batch) -> Tensor:
    try:
        return model_outputs(model, batch)
    except ModelRunError as error:
        raise input_error(model, batch.arguments, error.__cause__ or error) from error


def is_classified(model: nn.Module, batches: Iterable[Any]) -> bool:
    """Return whether batches have class labels, and a model returns class scores for them."""
    try:
        [batch] = collect_batches(islice(batches, 1), model)
        with evaluation_mode(model), torch.no_grad():
            logits = model_outputs(model, batch)
    except InvalidArgumentError:
        return False
    labels = batch.labels
    return (
        labels is not None
        and labels.ndim == 1
        and not labels.is_floating_point()
        and logits.ndim == 2
        and 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]
    )
