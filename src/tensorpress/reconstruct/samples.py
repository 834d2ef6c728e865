"""Samples inputs of one model and responses of another at the same positions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, outside_contexts
from tensorpress.calibrate.full_pass import run_to_end
from tensorpress.calibrate.patches import ANY_CONV, output_rows, unfold_inputs
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode
from tensorpress.reconstruct.input_capture import capture_inputs
from tensorpress.schemes.layer_spec import read_spec

ROWS = 20_000
"""Most positions of a layer that are sampled over all batches."""

WIDE = 4_608
"""Fewer rows are sampled of layers with more columns than a 3×3 convolution of 512 channels."""

WIDE_VALUES = 1 << 25
"""Most rows times columns of a layer wider than `WIDE`: 128 MiB of float32."""


@dataclass(frozen=True)
class Positions:
    """Chooses the positions of each batch that are sampled, the same ones in every pass.

    Attributes
    ----------
    most : int
        Most positions of a layer in a batch.
    seed : int
        Seed of the choice.
    wide_values : int, optional
        Most positions times columns of a layer wider than `WIDE` in a batch.
    """

    most: int
    seed: int
    wide_values: int | None = None

    @staticmethod
    def spread(batches: Sequence[Batch], seed: int) -> "Positions":
        """Share `ROWS` and `WIDE_VALUES` evenly among the batches."""
        share = max(1, ROWS // len(batches))
        return Positions(share, seed, WIDE_VALUES // len(batches))

    def share(self, layer: nn.Module) -> int:
        """Return the most positions to sample of a layer in a batch."""
        columns = prod(read_spec(layer).kernel_shape[2:])
        if self.wide_values is None or columns <= WIDE:
            return self.most
        return max(1, min(self.most, self.wide_values // columns))

    def random(self, batch: int, call: int = 0) -> torch.Generator:
        """Return the generator for the positions of one call of a layer."""
        seed = self.seed * 1_000_003 + batch + call * 1_000_000_007
        return torch.Generator().manual_seed(seed)


class _Calls:
    """Samples a share of the rows of all calls of a layer in a batch, equally from each call.

    The number of calls is unknown in advance, so rows are kept in random order and trimmed as
    calls come: at most two shares are in memory.
    """

    def __init__(self, positions: Positions, share: int, batch: int) -> None:
        self._positions, self._share, self._batch = positions, share, batch
        self._parts: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, rows: Tensor) -> None:
        """Add the rows of a call, at most a share."""
        self._parts.append(rows)
        count = len(self)
        if count == 2:
            self._parts[0] = self._shuffled(0)
        if count > 1:
            self._parts[-1] = self._shuffled(count - 1)
            power = 1 << (count.bit_length() - 1)  # trim again at every power of two
            for call in range(count) if count == power else (count - 1,):
                self._parts[call] = self._parts[call][: max(1, self._share // power)].clone()

    def merge(self) -> Tensor:
        """Return the rows of all calls."""
        most = max(1, self._share // len(self))
        return torch.cat([rows[:most] for rows in self._parts])

    def _shuffled(self, call: int) -> Tensor:
        rows = self._parts[call]
        random = self._positions.random(self._batch, call)
        return rows[torch.randperm(len(rows), generator=random).to(rows.device)]


@dataclass(frozen=True)
class Responses:
    """The sampled outputs of layers of a dense model.

    Attributes
    ----------
    rows : dict of str to Tensor
        Outputs by name, in the order of the first calls, (rows, groups, outputs per group).
    calls : dict of str to list of int
        How often each batch calls each layer.
    once : list of str
        Layers that every batch calls once; empty if batches call them in different orders.
    """

    rows: dict[str, Tensor]
    calls: dict[str, list[int]]
    once: list[str]


def sample_responses(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], positions: Positions
) -> Responses:
    """Return sampled outputs of layers, in the order of their calls.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode.
    names : sequence of str
        Layers for which `can_unfold` is true.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.
    positions : Positions
        The positions to sample, evenly from all calls in a batch.

    Returns
    -------
    Responses
        The outputs of each layer that is called.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3))
    >>> batches = collect_batches([torch.ones(2, 1, 5, 5)], net)
    >>> sample_responses(net, ["0"], batches, Positions(100, seed=0)).rows["0"].shape
    torch.Size([18, 1, 4])
    """
    seen: dict[str, list[Tensor]] = {}
    calls: dict[str, _Calls] = {}  # of one batch
    counts: dict[str, list[int]] = {}
    orders: list[list[str]] = []

    def record(name: str, layer: nn.Module) -> Callable[..., None]:
        share = positions.share(layer)

        @outside_contexts()
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            rows = output_rows(layer, _unpadded(batch, layer, out))
            before = calls.setdefault(name, _Calls(positions, share, number))
            if len(rows) > share:
                random = positions.random(number, len(before))
                chosen = torch.randint(len(rows), (share,), generator=random)
                rows = rows[chosen.to(rows.device)]
            before.add(rows.to(torch.float32, copy=True))  # the next operation may be in place

        return hook

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model))
        layers = {name: model.get_submodule(name) for name in names}
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(record(name, layer)).remove)
        for number, batch in enumerate(batches):
            calls.clear()
            run_to_end(model, batch)
            orders.append([name for name, parts in calls.items() if len(parts) == 1])
            for name, parts in calls.items():
                counts.setdefault(name, [0] * len(batches))[number] = len(parts)
                seen.setdefault(name, []).append(parts.merge())
    rows = {name: torch.cat(seen.pop(name)) for name in list(seen)}  # frees the parts one by one
    return Responses(rows, counts, _common_order(orders))


def _common_order(orders: Sequence[Sequence[str]]) -> list[str]:
    """Return the names common to all orders, or none if these disagree on their order."""
    common = set.intersection(*map(set, orders))
    first, *others = ([name for name in order if name in common] for order in orders)
    return first if all(order == first for order in others) else []


def inputs_in_order(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    positions: Positions,
    dense: Responses | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the input rows of layers, at the same positions as `sample_responses`.

    A layer may be replaced after it is yielded; later layers then see its new outputs.

    Parameters
    ----------
    model, batches, positions
        As for `sample_responses`.
    names : sequence of str
        The layers, in the order of their first calls.
    dense : Responses, optional
        How the dense model calls the layers; by default every batch calls each once. A layer with
        another number of calls takes a separate pass over the batches. It is left out if that
        number has changed.

    Yields
    ------
    tuple of str and Tensor
        The layer's name, and its rows (rows, groups, columns).

    Raises
    ------
    InvalidArgumentError
        If inputs are not finite, or batches call layers in different orders.
    """
    once = names if dense is None else dense.once
    walk = capture_inputs(model, once, batches)
    for name in names:
        if name in once:
            name, inputs = next(walk)
            layer = model.get_submodule(name)
            rows = torch.cat(
                [
                    _input_rows(layer, batch, x, positions, number)
                    for number, (batch, x) in enumerate(zip(batches, inputs, strict=True))
                ]
            )
            del inputs  # frees them while the passes go on
        else:
            layer = model.get_submodule(name)
            rows, calls = _rows_of_all_calls(model, layer, batches, positions)
            if dense is not None and calls != dense.calls[name]:
                continue
        if not bool(torch.isfinite(torch.stack(torch.aminmax(rows))).all()):
            raise InvalidArgumentError(f"an input of layer {name!r} is NaN or infinite")
        yield name, rows


@torch.no_grad()
def _rows_of_all_calls(
    model: nn.Module, layer: nn.Module, batches: Sequence[Batch], positions: Positions
) -> tuple[Tensor, list[int]]:
    """Return the input rows of all calls of a layer, and its number of calls per batch."""
    share, parts, counts = positions.share(layer), [], []

    @outside_contexts()
    def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        x = (*arguments, *keywords.values())[0]
        calls.add(_input_rows(layer, batch, x, positions, number, len(calls)))

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with evaluation_mode(model):
            for number, batch in enumerate(batches):
                calls = _Calls(positions, share, number)
                run_to_end(model, batch)
                counts.append(len(calls))
                if calls:
                    parts.append(calls.merge())
    finally:
        handle.remove()
    return torch.cat(parts) if parts else torch.empty(0), counts


def _input_rows(
    layer: nn.Module, batch: Batch, x: Tensor, positions: Positions, number: int, call: int = 0
) -> Tensor:
    """Return sampled rows of one input of a layer."""
    x, random = _unpadded(batch, layer, x), positions.random(number, call)
    return unfold_inputs(layer, x, positions.share(layer), random).float()


def _unpadded(batch: Batch, layer: nn.Module, x: Tensor) -> Tensor:
    return x if isinstance(layer, ANY_CONV) else batch.unpadded(layer, x)
