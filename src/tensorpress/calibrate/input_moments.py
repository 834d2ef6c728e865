"""Second moments of the inputs of layers, added up batch by batch."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tensorpress.calibrate.batches import Batch, outside_contexts, run_model
from tensorpress.calibrate.patches import can_unfold, unfold_inputs
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode

WIDEST = 8192
"""Most columns of a block: a layer with more has moments within blocks of so many.

A 3×3 convolution of 512 channels, as in ResNets and VGG, has 4,608.
"""

ROWS = 8192
"""Positions of a batch that are looked at: a random choice where there are more."""


@dataclass
class Moments:
    """Moments of the vectors that a layer multiplies its weight with.

    Attributes
    ----------
    blocks : list of Tensor
        Sums of x xᵀ over rows, float64 on the CPU, of consecutive columns: each of shape
        (groups, columns, columns).
    rows : int
        How many vectors were added up.
    """

    blocks: list[Tensor]
    rows: int = 0

    def second(self) -> list[Tensor]:
        """Return the mean of x xᵀ, block by block."""
        return [block / max(self.rows, 1) for block in self.blocks]

    def add(self, rows: Tensor) -> None:
        """Add vectors of shape (rows, groups, columns)."""
        columns = rows.movedim(0, -1)  # (groups, columns, rows)
        start = 0
        for block in self.blocks:
            part = columns[:, start : start + block.shape[-1]].float()
            block += (part @ part.mT).to(block)
            start += block.shape[-1]
        self.rows += len(rows)

    @staticmethod
    def none(groups: int, columns: int) -> "Moments":
        """Return the sums over no vectors."""
        widths = [min(WIDEST, columns - start) for start in range(0, columns, WIDEST)]
        return Moments([torch.zeros(groups, n, n, dtype=torch.float64) for n in widths])


def input_moments(
    model: nn.Module, batches: Sequence[Batch], *, seed: int = 0
) -> dict[str, Moments]:
    """Return the second moments of the inputs of every Linear and convolution that is called.

    Sums are held in float64, for a layer of n columns 8n² bytes, in blocks of at most 8,192
    columns; layers that are given one and the same tensor, such as the projections of an
    attention, hold one `Moments`.

    Parameters
    ----------
    model : nn.Module
        On any device; run in eval mode without gradients.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.
    seed : int
        Of the choice of positions.

    Raises
    ------
    InvalidArgumentError
        Where an input or its square is not finite, naming the layer.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Linear(2, 3))
    >>> found = input_moments(net, collect_batches([torch.tensor([[1.0, 2.0], [3.0, 0.0]])], net))
    >>> found["0"].second()[0].tolist()
    [[[5.0, 1.0], [1.0, 2.0]]]
    """
    layers = {name: layer for name, layer in model.named_modules() if can_unfold(layer)}
    leaders = _leaders(model, batches[0], layers)
    random = torch.Generator().manual_seed(seed)
    found: dict[str, Moments] = {}

    def look(name: str, x: Tensor) -> None:
        if leaders.get(name, name) != name:
            return
        layer = layers[name]
        rows = unfold_inputs(layer, batch.unpadded(layer, x), ROWS, random)
        if not bool(torch.isfinite(rows).all()):
            raise InvalidArgumentError(f"an input of layer {name!r} is NaN or infinite")
        if name not in found:
            found[name] = Moments.none(*rows.shape[1:])
        found[name].add(rows)

    with _looking(layers, look), evaluation_mode(model), torch.no_grad():
        for batch in batches:
            run_model(model, batch)
    for name, moments in found.items():
        if not all(bool(torch.isfinite(block).all()) for block in moments.blocks):
            raise InvalidArgumentError(
                f"inputs of layer {name!r} are too large: their squares are no finite numbers"
            )
    if distributed.is_available() and distributed.is_initialized():
        _add_up_over_processes(found)
    return {name: found[leader] for name, leader in leaders.items() if leader in found}


def _add_up_over_processes(found: dict[str, Moments]) -> None:
    """Replace the sums of each process by those over all of them."""
    everywhere: list[list[str]] = [[]] * distributed.get_world_size()
    distributed.all_gather_object(everywhere, list(found))
    if any(names != list(found) for names in everywhere):
        raise InvalidArgumentError("processes call different layers: their sums cannot be added up")
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    for moments in found.values():
        rows = torch.tensor(moments.rows, device=device)
        distributed.all_reduce(rows)
        moments.rows = int(rows)
        for block in moments.blocks:
            total = block.to(device)
            distributed.all_reduce(total)
            block.copy_(total)


def _leaders(model: nn.Module, batch: Batch, layers: dict[str, nn.Module]) -> dict[str, str]:
    """Return for every layer that is called the first one that is given the same rows."""
    seen: dict[tuple[Any, ...], tuple[Any, str]] = {}
    first: dict[str, str] = {}
    calls: Counter[str] = Counter()

    def look(name: str, x: Tensor) -> None:
        calls[name] += 1
        version = None if x.is_inference() else x._version  # which those do not have
        key = (id(x), version, *_geometry(layers[name]))
        held, leader = seen.get(key, (None, name))
        if (
            held is None or version is None or held() is not x
        ):  # the number of one that is gone may come again
            leader = name
            seen[key] = (weakref.ref(x), name)
        first.setdefault(name, leader)

    with _looking(layers, look), evaluation_mode(model), torch.no_grad():
        run_model(model, batch)
    once = {name for name, times in calls.items() if times == 1}
    return {name: leader if {name, leader} <= once else name for name, leader in first.items()}


def _geometry(layer: nn.Module) -> tuple[Any, ...]:
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return tuple(getattr(layer, name, None) for name in names)


@contextmanager
def _looking(layers: dict[str, nn.Module], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    def watch(name: str) -> Callable[..., None]:
        @outside_contexts()
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            look(name, (*given, *named.values())[0])

        return hook

    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(watch(name), with_kwargs=True)
            stack.callback(hook.remove)
        yield
