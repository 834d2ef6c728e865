"""Times of forward passes of several models, measured alternately."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import inf
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import nn

from tensorpress.measure.cost import evaluation_mode
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs

NORMAL = 0.93
"""Standard error of the median of n normal values, times √n, over their interquartile range."""


def measure_latencies(
    models: Sequence[nn.Module], inputs: ExampleInputs, *, repeats: int = 15
) -> list[float]:
    """Return the median time of a forward pass of every model, in milliseconds.

    The models run alternately, so that all are affected equally if the machine's speed drifts.

    Parameters
    ----------
    models : sequence of nn.Module
        The models, which run in eval mode without gradients.
    inputs : Tensor, sequence or mapping
        Arguments of one forward pass; see `ModelInputs.parse`.
    repeats : int
        Number of timed passes of every model, after two warm-up passes.

    Examples
    --------
    >>> len(measure_latencies([nn.Linear(3, 2), nn.Linear(3, 5)], [torch.zeros(1, 3)], repeats=3))
    2
    """
    return list(map(median, time_passes(models, inputs, repeats=repeats)))


def time_passes(
    models: Sequence[nn.Module],
    inputs: ExampleInputs,
    *,
    repeats: int = 15,
    least: int = 5,
    seconds: float = inf,
    precision: float = 0.0,
    clock: Callable[[], float] = perf_counter,
) -> list[list[float]]:
    """Return the times of several forward passes of every model, in milliseconds.

    Every model runs once per round. Every other round runs in reverse order, so that no model
    always follows the same one. The first two rounds are not counted.

    Parameters
    ----------
    models : sequence of nn.Module
        The models, which run in eval mode without gradients.
    inputs : Tensor, sequence or mapping
        Arguments of one forward pass; see `ModelInputs.parse`.
    repeats : int
        Largest number of rounds.
    least : int
        Minimum number of rounds, regardless of ``seconds`` and ``precision``.
    seconds : float
        Time after which no further round starts.
    precision : float
        Stop once the ratios of every model's times to those of the first model, round by round,
        have a median with a relative standard error below this. Busy machines need more rounds.
    clock : callable
        Function that returns the time in seconds.

    Returns
    -------
    list of list of float
        One list per model; the k-th numbers of all lists are from the same round.

    Examples
    --------
    >>> [times] = time_passes([nn.Linear(3, 2)], [torch.zeros(1, 3)], repeats=4)
    >>> len(times)
    4
    """
    times: list[list[float]] = [[] for _ in models]
    arguments = ModelInputs.parse(inputs)
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.inference_mode())
        start = perf_counter()
        for turn in range(-2, repeats):
            if turn >= least and (
                perf_counter() - start > seconds or _uncertainty(times) < precision
            ):
                break
            for place in range(len(models))[:: -1 if turn % 2 else 1]:
                elapsed = _time_pass(models[place], arguments, clock)
                if turn >= 0:
                    times[place].append(1000 * elapsed)
    return times


def time_layers(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    inputs: ExampleInputs,
    *,
    repeats: int = 7,
) -> dict[str, float]:
    """Return the median time of each layer in a forward pass, in milliseconds.

    Parameters
    ----------
    model : nn.Module
        The model, which runs in eval mode without gradients.
    layers : mapping of str to nn.Module
        Layers of the model by any name; all calls of a layer are added up.
    inputs : Tensor, sequence or mapping
        Arguments of one forward pass; see `ModelInputs.parse`.
    repeats : int
        Number of timed passes, after a warm-up pass.

    Returns
    -------
    dict
        Times by name, without layers that are not called.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> list(time_layers(net, {"0": net[0]}, torch.zeros(1, 3)))
    ['0']
    """
    arguments = ModelInputs.parse(inputs)
    device = next((x.device for x in arguments.tensors), torch.device("cpu"))
    passes: list[dict[str, float]] = []
    starts: list[float] = []

    def start(*_: object) -> None:
        synchronize(device)
        starts.append(perf_counter())

    def make_stop(name: str) -> Callable[..., None]:
        def stop(*_: object) -> None:
            synchronize(device)
            elapsed = 1000 * (perf_counter() - starts.pop())
            passes[-1][name] = passes[-1].get(name, 0.0) + elapsed

        return stop

    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.inference_mode())
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(start).remove)
            stack.callback(layer.register_forward_hook(make_stop(name)).remove)
        for _ in range(repeats + 1):
            passes.append({})
            arguments.run(model)
    return {name: median(one[name] for one in passes[1:]) for name in passes[0]}


def _uncertainty(times: Sequence[Sequence[float]]) -> float:
    """Return the largest relative standard error of a median ratio, estimated from quartiles."""
    if len(times) < 2:
        return inf
    # The standard error of a median of n values is about 0.93 (q₃ − q₁) / √n.
    ratios = np.divide(times[1:], times[0])
    first, middle, third = np.quantile(ratios, (0.25, 0.5, 0.75), axis=1)
    errors = NORMAL * (third - first) / middle / np.sqrt(ratios.shape[1])
    return float(errors.max())


def _time_pass(model: nn.Module, inputs: ModelInputs, clock: Callable[[], float]) -> float:
    device = inputs.tensors[0].device
    synchronize(device)
    start = clock()
    inputs.run(model)
    synchronize(device)
    return clock() - start


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
