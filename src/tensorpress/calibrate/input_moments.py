"""Second moments of the inputs of layers, summed batch by batch."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tensorpress.calibrate.batches import Batch, outside_contexts
from tensorpress.calibrate.full_pass import run_to_end
from tensorpress.calibrate.patches import can_unfold, unfold_inputs
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode
from tensorpress.schemes.layer_spec import read_spec

MAX_COLUMNS = 4608
"""Full second moments are taken up to this many columns: a 3×3 convolution of 512 channels."""

WIDE_MOMENTS = 1 << 24
"""Second moments of a layer with more columns, within blocks of columns: 128 MiB."""

MAX_ROWS = 8192
"""Most positions per batch; more are sampled at random."""

MAX_VALUES = 1 << 25
"""Most values in these positions, 128 MiB, for layers of many columns."""


@dataclass
class Moments:
    """Sums of second moments of a layer's input vectors.

    Attributes
    ----------
    blocks : list of Tensor
        Sums of x xᵀ over input vectors x, one per block of consecutive columns (see `block_width`):
        float64 on the CPU, each of shape (groups, columns, columns).
    rows : int
        The number of vectors.
    """

    blocks: list[Tensor]
    rows: int = 0

    def means(self) -> list[Tensor]:
        """Return the mean of x xᵀ per block, (groups, columns, columns)."""
        return [block / max(self.rows, 1) for block in self.blocks]

    def add(self, rows: Tensor) -> None:
        """Add vectors (rows, groups, columns)."""
        columns = rows.movedim(0, -1)  # (groups, columns, rows)
        start = 0
        for block in self.blocks:
            # H += X Xᵀ, in float32 within a batch and in float64 over batches
            part = columns[:, start : start + block.shape[-1]].float()
            block += (part @ part.mT).to(block)
            start += block.shape[-1]
        self.rows += len(rows)

    @staticmethod
    def zeros(groups: int, columns: int) -> "Moments":
        """Return sums over no vectors."""
        width = block_width(columns)
        widths = [min(width, columns - start) for start in range(0, columns, width)]
        return Moments([torch.zeros(groups, n, n, dtype=torch.float64) for n in widths])


def block_width(columns: int) -> int:
    """Return the number of columns of a block, within which moments are taken.

    Examples
    --------
    >>> block_width(4608), block_width(8192), block_width(65536)
    (4608, 2048, 256)
    """
    if columns <= MAX_COLUMNS:
        return columns
    return min(MAX_COLUMNS, max(1, WIDE_MOMENTS // columns))


def input_moments(
    model: nn.Module, batches: Sequence[Batch], *, seed: int = 0
) -> dict[str, Moments]:
    """Return the second moments of the inputs of every Linear and convolution that is called.

    They take 8n² bytes for a layer of n columns, or 128 MiB in blocks if n exceeds 4,608. Layers
    that receive the same tensor, such as query, key and value projections, share one object.

    Parameters
    ----------
    model : nn.Module
        A model on any device; it is run in eval mode without gradients.
    batches : sequence of Batch
        Calibration data, from `tensorpress.calibrate.batches.collect_batches`.
    seed : int
        Seed of the sampled positions.

    Returns
    -------
    dict of str to Moments
        The moments by layer name.

    Raises
    ------
    InvalidArgumentError
        If an input or its square is not finite; the message names the layer.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Linear(2, 3))
    >>> moments = input_moments(net, collect_batches([torch.tensor([[1.0, 2.0], [3.0, 0.0]])], net))
    >>> moments["0"].means()[0].tolist()
    [[[5.0, 1.0], [1.0, 2.0]]]
    """
    layers = {name: layer for name, layer in model.named_modules() if can_unfold(layer)}
    with evaluation_mode(model), torch.no_grad():
        leaders = find_leaders(layers, lambda: run_to_end(model, batches[0]))
    random = torch.Generator().manual_seed(seed)
    moments: dict[str, Moments] = {}

    def add(name: str, x: Tensor) -> None:
        if leaders.get(name, name) != name:
            return
        layer = layers[name]
        groups, _, *kernel = read_spec(layer).kernel_shape
        most = max(1, min(MAX_ROWS, MAX_VALUES // (groups * prod(kernel))))
        rows = unfold_inputs(layer, batch.unpadded(layer, x), most, random)
        if not bool(torch.isfinite(rows).all()):
            raise InvalidArgumentError(f"an input of layer {name!r} is NaN or infinite")
        if name not in moments:
            moments[name] = Moments.zeros(*rows.shape[1:])
        moments[name].add(rows)

    with input_hooks(layers, add), evaluation_mode(model), torch.no_grad():
        for batch in batches:
            run_to_end(model, batch)
    for name, sums in moments.items():
        if not all(bool(torch.isfinite(block).all()) for block in sums.blocks):
            raise InvalidArgumentError(
                f"inputs of layer {name!r} are too large: their squares are not finite"
            )
    if distributed.is_available() and distributed.is_initialized():
        _sum_over_processes(moments)
    return {name: moments[leader] for name, leader in leaders.items() if leader in moments}


def _sum_over_processes(moments: dict[str, Moments]) -> None:
    """Replace the sums of each process by the sums over all processes."""
    names: list[list[str]] = [[]] * distributed.get_world_size()
    distributed.all_gather_object(names, list(moments))
    if any(other != list(moments) for other in names):
        raise InvalidArgumentError("processes call different layers, so their sums cannot be added")
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    for sums in moments.values():
        rows = torch.tensor(sums.rows, device=device)
        distributed.all_reduce(rows)
        sums.rows = int(rows)
        for block in sums.blocks:
            total = block.to(device)
            distributed.all_reduce(total)
            block.copy_(total)


def find_leaders(layers: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, str]:
    """Map every called layer to the first layer that receives the same vectors.

    A layer that is called more than once maps to itself.

    Parameters
    ----------
    layers : mapping of str to nn.Module
        Layers for which `can_unfold` is true, by name.
    run : callable
        Runs the model of the layers once.

    Examples
    --------
    >>> layers = {"q": nn.Linear(2, 2), "k": nn.Linear(2, 2), "o": nn.Linear(2, 2)}
    >>> x = torch.ones(1, 2)
    >>> find_leaders(layers, lambda: layers["o"](layers["q"](x) + layers["k"](x)))
    {'q': 'q', 'k': 'q', 'o': 'o'}
    """
    inputs: dict[tuple[Any, ...], tuple[Any, str]] = {}
    leaders: dict[str, str] = {}
    calls: Counter[str] = Counter()

    def record(name: str, x: Tensor) -> None:
        calls[name] += 1
        version = None if x.is_inference() else x._version  # inference tensors have no version
        key = (id(x), version, *_geometry(layers[name]))
        reference, leader = inputs.get(key, (None, name))
        # The id may be that of a freed tensor.
        if reference is None or version is None or reference() is not x:
            leader = name
            inputs[key] = (weakref.ref(x), name)
        leaders.setdefault(name, leader)

    with input_hooks(layers, record):
        run()
    once = {name for name, times in calls.items() if times == 1}
    return {name: leader if {name, leader} <= once else name for name, leader in leaders.items()}


def _geometry(layer: nn.Module) -> tuple[Any, ...]:
    """Return the attributes that determine how inputs are unfolded."""
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return tuple(getattr(layer, name, None) for name in names)


@contextmanager
def input_hooks(
    layers: Mapping[str, nn.Module], callback: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call a function with name and input of every layer that is called in a ``with`` block."""

    def make_hook(name: str) -> Callable[..., None]:
        @outside_contexts()
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            callback(name, (*args, *kwargs.values())[0])

        return hook

    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(make_hook(name), with_kwargs=True)
            stack.callback(hook.remove)
        yield
