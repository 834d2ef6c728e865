"""Measurement of models: parameters, multiply–accumulates and time."""

from dataclasses import asdict, dataclass

from torch import nn

from tensorpress.measure.cost import count_bytes, count_macs, count_params
from tensorpress.measure.latency import measure_latencies
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs

__all__ = [
    "Measurement",
    "count_bytes",
    "count_macs",
    "count_params",
    "measure",
    "measure_latencies",
]


@dataclass(frozen=True)
class Measurement:
    """The cost of a model.

    Attributes
    ----------
    params : int
        Number of stored parameters.
    macs : int
        Multiply–accumulates of a forward pass per example.
    latency_ms : float
        Median time of repeated forward passes, in milliseconds per batch.
    """

    params: int
    macs: int
    latency_ms: float

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers by name."""
        return asdict(self)


def measure(model: nn.Module, example_inputs: ExampleInputs) -> Measurement:
    """Measure the parameters, multiply–accumulates and time of a model on example inputs.

    Parameters
    ----------
    model : nn.Module
        The model; it runs in eval mode without gradients, and its mode is restored.
    example_inputs : Tensor, sequence or mapping
        Arguments of one forward pass: a single one, several by position, or by name. The first axis
        is the batch.

    Examples
    --------
    >>> import torch
    >>> measure(nn.Linear(30, 10), torch.zeros(2, 30)).macs
    300
    """
    inputs = ModelInputs.parse(example_inputs)
    time_ms = measure_latencies([model], inputs)[0]
    return Measurement(count_params(model), count_macs(model, inputs), time_ms)
