"""Metrics of a model on batches: loss, error, and distance from the dense outputs."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.calibrate.batches import Batch, model_outputs
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.measure.cost import evaluation_mode

METRICS: Mapping[str, str] = {
    "loss": "mean cross entropy in nats",
    "error": "misclassified examples in percent",
    "similarity": "squared distance of the outputs from those of the dense model, relative to "
    "their squared norm",
}
"""The metrics by name, with a description; lower is better for all."""

Metric = str | Callable[[nn.Module], float]


class Judge:
    """Measures a metric of versions of a dense model.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    batches : sequence of Batch
        The data.
    metric : str or callable
        A name of `METRICS`, or a function that returns a number for a model in eval mode; lower is
        better.

    Raises
    ------
    InvalidArgumentError
        If the metric is unknown, labels are missing or do not fit the outputs, or a value is not
        finite.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], metric: Metric) -> None:
        if isinstance(metric, str) and metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        if metric in ("loss", "error") and any(batch.labels is None for batch in batches):
            raise InvalidArgumentError(
                f"the metric {metric!r} needs labels: give pairs (inputs, labels) as batches, or "
                "use the metric 'similarity'"
            )
        self._batches, self._metric = batches, metric
        self._labelled = all(batch.labels is not None for batch in batches)
        self._outputs: list[Tensor] | None = None
        if isinstance(metric, str):
            with evaluation_mode(model), torch.no_grad():
                self._outputs = [model_outputs(model, batch) for batch in batches]
        self.dense = self(model)

    @property
    def name(self) -> str:
        """The metric's name, or the function's."""
        if isinstance(self._metric, str):
            return self._metric
        return getattr(self._metric, "__qualname__", type(self._metric).__name__)

    @property
    def kind(self) -> str:
        """What one run measures: all named metrics, or the function."""
        return "outputs" if isinstance(self._metric, str) else self.name

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return all metrics of one run over the batches, by name."""
        with evaluation_mode(model), torch.no_grad():
            if isinstance(self._metric, str):
                values = self._compare_outputs(model)
            else:
                values = {self.name: float(self._metric(model))}
        if not math.isfinite(values[self.name]):
            raise InvalidArgumentError(f"the {self.name} of the model is {values[self.name]}")
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _compare_outputs(self, model: nn.Module) -> dict[str, float]:
        assert self._outputs is not None
        loss, wrong, rows, distance, norm = 0.0, 0, 0, 0.0, 0.0
        for batch, expected in zip(self._batches, self._outputs, strict=True):
            outputs = model_outputs(model, batch)
            # similarity = ‖y − y_dense‖² / ‖y_dense‖², over all batches
            distance += float((outputs - expected).square().sum(dtype=torch.float64))
            norm += float(expected.square().sum(dtype=torch.float64))
            if self._labelled:
                logits, labels = class_logits(outputs, batch)
                loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
                wrong += int((logits.argmax(dim=1) != labels).sum())
                rows += len(labels)
        labelled = {"loss": loss / rows, "error": 100 * wrong / rows} if rows else {}
        return {**labelled, "similarity": distance / norm if norm else distance}


def class_logits(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits (..., classes) as (rows, classes), and the label of every row.

    Raises
    ------
    InvalidArgumentError
        If the labels of the batch are not integers of shape (...) below the number of classes.
    """
    labels = batch.labels
    assert labels is not None
    if labels.is_floating_point() or labels.shape != logits.shape[:-1] or not labels.numel():
        raise InvalidArgumentError(
            f"labels must be integer classes of shape {tuple(logits.shape[:-1])} for outputs of "
            f"shape {tuple(logits.shape)}; got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    most = int(labels.max())
    if most >= logits.shape[-1] or int(labels.min()) < 0:
        raise InvalidArgumentError(
            f"labels must lie between 0 and {logits.shape[-1] - 1} for outputs of shape "
            f"{tuple(logits.shape)}; got {int(labels.min())} to {most}"
        )
    return logits.flatten(0, -2), labels.flatten()
