"""The outputs of a model as tensors, for any structure that models return."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import MASK, Batch, run_model
from tensorpress.errors import InvalidArgumentError, TensorPressError, first_line

LOGITS = "logits"
"""The name of unnormalized class scores among the outputs of a model."""

_STATES = re.compile(r".*(past_key_values|hidden_states|attentions)")
"""States that Transformers models return in addition to their outputs."""

_CONSTANT = 1e-6
"""Outputs with a smaller standard deviation, relative to the root mean square, are constant."""


def named_outputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Run a model and return its floating-point outputs by name.

    Tensors in tuples, lists, mappings and dataclasses are named by their path, and a single Tensor
    is named "output". If there are ``logits``, losses and hidden states are left out. Values are
    float32 or wider.

    Parameters
    ----------
    model : nn.Module
        The model.
    batch : Batch
        The inputs.

    Raises
    ------
    InvalidArgumentError
        If the model fails, or returns no floating-point tensor.

    Examples
    --------
    >>> class Halves(nn.Module):
    ...     def forward(self, x):
    ...         return {"left": x[:, :2], "right": (x[:, 2:],)}
    >>> outputs = named_outputs(Halves(), Batch((torch.zeros(1, 4),), None))
    >>> {name: tuple(tensor.shape) for name, tensor in outputs.items()}
    {'left': (1, 2), 'right.0': (1, 2)}
    """
    try:
        output = run_model(model, batch)
    except TensorPressError:
        raise
    except Exception as error:  # a model may raise anything
        message = first_line(error)
        raise InvalidArgumentError(
            f"the model fails on a batch of {batch.arguments}: {message}"
        ) from error
    return tensors_by_name(output)


def tensors_by_name(output: Any) -> dict[str, Tensor]:
    """Return the tensors of a model's output by name; see `named_outputs`."""
    if not isinstance(output, Mapping) and isinstance(getattr(output, LOGITS, None), Tensor):
        output = {LOGITS: output.logits}
    tensors = dict(_walk(output, ""))
    if LOGITS in tensors:
        tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.endswith(("loss", "hidden_state"))
        }
    if not tensors:
        raise InvalidArgumentError(
            f"the model returns {type(output).__name__} without a floating-point tensor, so its "
            "outputs cannot be compared"
        )
    return {
        name: tensor.float() if tensor.element_size() < 4 else tensor
        for name, tensor in tensors.items()
    }


def output_tensors(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Run a model and return its `named_outputs`, logits first."""
    outputs = named_outputs(model, batch)
    return [outputs[name] for name in sorted(outputs, key=lambda name: name != LOGITS)]


def floating_tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of an output of any structure, in order."""
    for _, tensor in _walk(output, ""):
        yield tensor


def _walk(output: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel():
            yield path or "output", output
        return
    items: Any = ()
    if isinstance(output, Mapping):
        items = output.items()
    elif isinstance(output, list | tuple):
        items = enumerate(output)
    elif is_dataclass(output):
        items = ((field.name, getattr(output, field.name)) for field in fields(output))
    for name, value in items:
        if not _STATES.fullmatch(str(name)):
            yield from _walk(value, f"{path}.{name}" if path else str(name))


def random_direction(tensors: list[Tensor], generator: torch.Generator) -> Tensor:
    """Return the sum of all values times random numbers of unit variance."""
    return torch.stack(
        [(t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in tensors]
    ).sum()


def deviation_scales(outputs: Sequence[Tensor], batch: Batch) -> list[float]:
    """Return factors that scale several outputs to equal deviations."""
    if len(outputs) == 1:
        return [1.0]
    deviations = [Deviation() for _ in outputs]
    for y, deviation in zip(outputs, deviations, strict=True):
        deviation.add(y.detach(), token_mask(y, batch))
    return [x.energy**-0.5 if x.energy > 0 else 0.0 for x in deviations]


def token_mask(x: Tensor, batch: Batch) -> Tensor | None:
    """Return the mask of tokens of (examples, tokens, …) that are not padding, or None for all."""
    mask: Any = batch.named.get(MASK)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or x.shape[:2] != mask.shape or x.ndim < 2:
        return None
    return mask.bool()


class Deviation:
    """The squared deviation of a tensor's values from their mean over batches.

    The mean is over examples, and over positions of (examples, positions, channels). If sizes
    differ between batches, it is over all axes but the channels, the last axis or the second. Sums
    are merged as by Chan, Golub and LeVeque (1979), which loses no digits to a large mean.
    """

    def __init__(self) -> None:
        self._shapes: list[torch.Size] = []
        self._sums: dict[tuple[int, ...], _Sums] = {}

    def add(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Add the values of a batch; a mask of the first axes selects those that count."""
        self._shapes.append(x.shape)
        x = torch.where(x.isfinite(), x, 0).detach().double()
        # The axes to average depend on all shapes, so sums over all candidates are collected.
        for axes in {
            _mean_axes([x.shape]),
            *(_all_but(x.ndim, axis) for axis in (x.ndim - 1, 1, -1)),
        }:
            values = x if mask is None else x[mask].unsqueeze(0)
            self._sums.setdefault(axes, _Sums()).add(values, axes)

    @property
    def energy(self) -> float:
        """Σ (y − ȳ)², or Σ y² of constant outputs."""
        sums = self._sums[_mean_axes(self._shapes)]
        constant = sums.lost <= _CONSTANT**2 * sums.squares
        return sums.squares if constant else sums.lost


class _Sums:
    """Sums of squares, and of squared deviations from the mean over some axes."""

    def __init__(self) -> None:
        self.lost = self.squares = 0.0
        self._count = 0
        self._mean = torch.zeros(())

    def add(self, x: Tensor, axes: tuple[int, ...]) -> None:
        mean = x.mean(axes, keepdim=True) if axes else x
        count = x.numel() // max(mean.numel(), 1)
        if not count or (self._count and mean.shape != self._mean.shape):
            return  # batches of other sizes are averaged over other axes
        self.lost += float((x - mean).square().sum())
        self.squares += float(x.square().sum())
        total, shift = self._count + count, mean - self._mean
        if self._count:
            self.lost += float(shift.square().sum()) * self._count * count / total
        self._mean = self._mean + shift * (count / total)
        self._count = total


def _all_but(order: int, axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(order) if a != axis)


def _mean_axes(shapes: Sequence[torch.Size]) -> tuple[int, ...]:
    first = shapes[0]
    axes = range(len(first))
    if all(shape[1:] == first[1:] for shape in shapes):
        return (0, 1) if len(first) == 3 else tuple(axes[:1])
    same = [a for a in axes if a and all(len(s) == len(first) and s[a] == first[a] for s in shapes)]
    channels = next((a for a in (len(first) - 1, 1) if a in same), None)
    return _all_but(len(first), -1 if channels is None else channels)
