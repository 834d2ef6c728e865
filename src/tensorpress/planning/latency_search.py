"""The search for a model whose measured latency meets a target."""

from collections.abc import Callable
from statistics import median

from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.latency import measure_latencies, time_passes
from tensorpress.measure.model_inputs import ExampleInputs

TRIES = 8
"""Largest number of models that are measured."""

LEAST, REPEATS, SECONDS, PRECISION = 9, 300, 45.0, 0.012
"""Least and most rounds, seconds and precision of a measurement; see `time_passes`."""

TOLERANCE = 0.1
"""How far below the target a time may be, as a share of it."""

NARROW = 0.005
"""Smallest difference of predicted shares that is worth another measurement."""


def fit_latency(
    build: Callable[[float], nn.Module],
    dense: nn.Module,
    inputs: ExampleInputs,
    target: float,
    *,
    relative: bool,
    lowest: float,
) -> tuple[float, float]:
    """Find the predicted latency at which the measured latency of a model meets a target.

    A prediction is a sum over layers. It misses the time between layers and their effects on each
    other. So one model after another is built and measured in rounds with the dense model, until
    one takes between 0.9 and 1 times the target. The next prediction is interpolated linearly
    between the nearest two measurements.

    Parameters
    ----------
    build : callable
        Returns a model with finite values that is predicted to take at most a share, from
        ``lowest`` to 1, of the dense model's time.
    dense : nn.Module
        The dense model.
    inputs : Tensor, sequence or mapping
        Arguments of one forward pass.
    target : float
        The longest time allowed: a share of the dense model's, or milliseconds.
    relative : bool
        Whether ``target`` is a share. A share is not affected by drifts of the machine's speed,
        because both models are measured in the same rounds.
    lowest : float
        The smallest share that can be predicted.

    Returns
    -------
    float, float
        The predicted share of the best model, and its measured time: the median of the ratios to
        the dense model's time, or of milliseconds.

    Raises
    ------
    InvalidArgumentError
        If all models take longer than the target; the message names the shortest time.

    Examples
    --------
    >>> import torch
    >>> def build(share):
    ...     return nn.Sequential(nn.Linear(512, int(1024 * share)))
    >>> x, dense = torch.randn(16, 512), build(1.0)
    >>> fit_latency(build, dense, [x], 0.9, relative=True, lowest=0.01)[1] <= 0.9
    True
    """

    def measure(share: float) -> float:
        dense_times, times = time_passes(
            [dense, build(share)],
            inputs,
            least=LEAST,
            repeats=REPEATS,
            seconds=SECONDS,
            precision=PRECISION,
        )
        if relative:
            return median(b / a for a, b in zip(dense_times, times, strict=True))
        return median(times)

    dense_time = 1.0 if relative else measure_latencies([dense], inputs)[0]
    aim = target * (1 - TOLERANCE / 2)
    trials = _search(measure, dense_time, aim, lowest, 0.3 * TOLERANCE * target)
    within = [(share, value) for share, value in trials if value <= target]
    if not within:
        least = min(value for _, value in trials)
        limit, reached = (
            f"{100 * v:.3g} %" if relative else f"{v:.3g} ms" for v in (target, least)
        )
        raise InvalidArgumentError(
            f"a latency of {limit} cannot be reached: the fastest pressed model takes {reached}"
            + (" of the dense model's time" if relative else "")
        )
    return min(within, key=lambda point: abs(point[1] - aim))


def _search(
    measure: Callable[[float], float], dense_time: float, aim: float, lowest: float, margin: float
) -> list[tuple[float, float]]:
    """Return the predicted shares that were tried, with their measured times."""
    fast: tuple[float, float] | None = None
    slow = (1.0, dense_time)
    share = aim / dense_time
    trials: list[tuple[float, float]] = []
    while len(trials) < TRIES:
        share = min(max(share, lowest), 1.0)
        value = measure(share)
        trials.append((share, value))
        if abs(value - aim) <= margin:
            break
        if value <= aim:
            fast = (share, value)
        else:
            slow = (share, value)
        if fast is not None:
            if slow[0] - fast[0] < NARROW:
                break
            share = _interpolate(fast, slow, aim)
        elif share <= lowest:
            break
        else:
            share = share * aim / value if len(trials) == 1 else lowest
    return trials


def _interpolate(fast: tuple[float, float], slow: tuple[float, float], aim: float) -> float:
    """Return where the line through two points reaches the aim, away from both ends."""
    (low, below), (high, above) = fast, slow
    place = (aim - below) / (above - below) if above > below else 0.5
    return low + (high - low) * min(max(place, 0.1), 0.9)
