"""Measuring models: parameters, bytes, multiply-accumulates, time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from tensorpress.measure.cost import count_macs, count_params
from tensorpress.measure.latency import measure_latencies

__all__ = ["Measurement", "count_macs", "count_params", "measure", "measure_latencies"]


@dataclass(frozen=True)
class Measurement:
    """What a model costs: stored parameters, MACs an example, and milliseconds a batch.

    ``latency_ms`` is the median over repeated forward passes of the inputs given.
    """

    params: int
    macs: int
    latency_ms: float

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers under their names."""
        return asdict(self)


def measure(model: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> Measurement:
    """Measure parameters, multiply-accumulates and time of a model on example inputs.

    Parameters
    ----------
    model : nn.Module
        Any model; it is run in eval mode without gradients and left in the mode it was in.
    example_inputs : Tensor or sequence of Tensor
        Arguments of one forward pass, the first axis being the batch.

    Examples
    --------
    >>> import torch
    >>> measure(nn.Linear(30, 10), torch.zeros(2, 30)).macs
    300
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    time_ms = measure_latencies([model], inputs)[0]
    return Measurement(count_params(model), count_macs(model, inputs), time_ms)
