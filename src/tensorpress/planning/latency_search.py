"""Finding the model that takes a given time, by measuring models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.latency import measure_latencies, time_passes

TRIES = 8
"""Models that are measured at most."""

LEAST, REPEATS, SECONDS, PRECISION = 9, 300, 45.0, 0.012
"""How long each is measured, as `time_passes` takes it."""

NARROW = 0.005
"""Predicted times that differ by less are not told apart."""


@dataclass(frozen=True)
class FittedLatency:
    """What `fit_latency` found.

    Attributes
    ----------
    at : float
        What its model was built for: the share of the dense model's time that was predicted.
    share : float
        The median of its time over that of the dense model in the same round.
    pressed_ms, dense_ms : float
        Medians of both.
    tried : tuple of (float, float)
        What models were built for, in the order tried, and the share of the dense model's time, or
        the milliseconds, that each took.
    """

    at: float
    share: float
    pressed_ms: float
    dense_ms: float
    tried: tuple[tuple[float, float], ...]


def fit_latency(
    build: Callable[[float], nn.Module],
    dense: nn.Module,
    inputs: Sequence[Tensor],
    target: float,
    *,
    relative: bool,
    lowest: float,
    tolerance: float = 0.1,
) -> FittedLatency:
    """Find what a model must be predicted to take so that it takes a given time.

    Predictions add up layers; what lies between them, and what the layers do to each other, only
    the whole model shows. So models are built for one prediction after another and measured, each
    in rounds with the dense one, until one takes the target's time or up to ``tolerance`` less.
    Which prediction is next follows from a straight line between the nearest two measured.

    Parameters
    ----------
    build : callable
        Returns a model, with any finite values, that is predicted to take at most a given
        share, from ``lowest`` to 1, of the dense model's time.
    dense : nn.Module
        The dense model.
    inputs : sequence of Tensor
        Arguments of one forward pass.
    target : float
        The time that must not be exceeded: as a share of the dense model's, or in milliseconds.
    relative : bool
        Whether it is a share. A share is robust where the machine's speed drifts, since both
        models are measured in the same rounds.
    lowest : float
        The least share that can be predicted.
    tolerance : float
        How far below the target is near enough.

    Raises
    ------
    InvalidArgumentError
        Where even the model predicted to take least takes longer, with both times.

    Examples
    --------
    >>> import torch
    >>> def build(share):
    ...     return nn.Sequential(nn.Linear(512, int(1024 * share)))
    >>> x, dense = torch.randn(16, 512), build(1.0)
    >>> fit_latency(build, dense, [x], 0.9, relative=True, lowest=0.01).share <= 0.9
    True
    """
    found: dict[float, tuple[float, float, float]] = {}

    def taken(share: float) -> float:
        both = time_passes(
            [dense, build(share)],
            inputs,
            least=LEAST,
            repeats=REPEATS,
            seconds=SECONDS,
            precision=PRECISION,
        )
        ratio = median(b / a for a, b in zip(*both, strict=True))
        found[share] = (ratio, median(both[1]), median(both[0]))
        return ratio if relative else found[share][1]

    whole = 1.0 if relative else measure_latencies([dense], inputs)[0]
    tried = _search(taken, whole, target, lowest, tolerance)
    within = [(share, value) for share, value in tried if value <= target]
    if not within:
        least = min(value for _, value in tried)
        asked, reached = (
            f"{100 * v:.3g} %" if relative else f"{v:.3g} ms" for v in (target, least)
        )
        raise InvalidArgumentError(
            f"a latency of {asked} cannot be reached: pressed as far as planned for, the model "
            f"takes {reached}" + (" of the dense model's" if relative else "")
        )
    at, _ = min(within, key=lambda point: abs(point[1] - _aim(target, tolerance)))
    return FittedLatency(at, *found[at], tuple(tried))


def _search(
    taken: Callable[[float], float], whole: float, target: float, lowest: float, tolerance: float
) -> list[tuple[float, float]]:
    """Return the predictions tried, with what was measured; the dense model takes ``whole``."""
    aim, near = _aim(target, tolerance), 0.3 * tolerance * target
    fast: tuple[float, float] | None = None
    slow = (1.0, whole)
    share = aim / whole
    tried: list[tuple[float, float]] = []
    while len(tried) < TRIES:
        share = min(max(share, lowest), 1.0)
        value = taken(share)
        tried.append((share, value))
        if abs(value - aim) <= near:
            break
        if value <= aim:
            fast = (share, value)
        else:
            slow = (share, value)
        if fast is not None:
            if slow[0] - fast[0] < NARROW:
                break
            share = _between(fast, slow, aim)
        elif share <= lowest:
            break
        else:
            share = share * aim / value if len(tried) == 1 else lowest
    return tried


def _aim(target: float, tolerance: float) -> float:
    """Return the middle of the times that are near enough."""
    return target * (1 - tolerance / 2)


def _between(fast: tuple[float, float], slow: tuple[float, float], aim: float) -> float:
    """Return where a straight line through two points takes the aim, not too near to either."""
    (low, below), (high, above) = fast, slow
    place = (aim - below) / (above - below) if above > below else 0.5
    return low + (high - low) * min(max(place, 0.1), 0.9)
