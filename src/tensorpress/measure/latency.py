"""Time of a forward pass, several models side by side."""

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from tensorpress.measure.cost import evaluating


def latencies(
    models: Sequence[nn.Module], inputs: Sequence[Tensor], *, repeats: int = 15
) -> list[float]:
    """Return the median milliseconds of a forward pass of every model.

    The models take turns, so that a machine whose speed drifts slows all of them alike.

    Parameters
    ----------
    models : sequence of nn.Module
        Run in eval mode, without gradients.
    inputs : sequence of Tensor
        Arguments of one forward pass.
    repeats : int
        Timed passes of every model, after two that are not.

    Examples
    --------
    >>> len(latencies([nn.Linear(3, 2), nn.Linear(3, 5)], [torch.zeros(1, 3)], repeats=3))
    2
    """
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode())
        for turn in range(repeats + 2):
            for model, taken in zip(models, times, strict=True):
                elapsed = _timed(model, inputs)
                if turn > 1:
                    taken.append(elapsed)
    return [1000 * median(taken) for taken in times]


def _timed(model: nn.Module, inputs: Sequence[Tensor]) -> float:
    device = inputs[0].device
    _synchronize(device)
    start = perf_counter()
    model(*inputs)
    _synchronize(device)
    return perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
