"""Rows to fit a layer by: inputs from one model, responses from another, at the same positions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, outside_contexts, run_model
from tensorpress.calibrate.patches import unfold_inputs
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode
from tensorpress.reconstruct.input_capture import capture_inputs
from tensorpress.schemes.layer_spec import CONVS

ROWS = 20_000
"""Positions of a layer that are sampled over all batches, at random where it has more."""


@dataclass(frozen=True)
class Positions:
    """The positions of each batch that are sampled: the same in every call.

    Attributes
    ----------
    most : int
        The largest number of positions of a batch.
    seed : int
        Seed of the choice.
    """

    most: int
    seed: int

    @staticmethod
    def spread(batches: Sequence[Batch], seed: int) -> "Positions":
        """Return an even share of `ROWS` for every batch."""
        return Positions(max(1, ROWS // len(batches)), seed)

    def random(self, batch: int) -> torch.Generator:
        """Return the stream that the positions of a batch are drawn from."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + batch)


def sample_responses(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], positions: Positions
) -> dict[str, Tensor]:
    """Return the outputs of layers, in the order in which they are called.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode.
    names : sequence of str
        Linear layers and convolutions.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.
    positions : Positions
        The positions that are sampled.

    Returns
    -------
    dict of str to Tensor
        The outputs of each layer that is called once a batch, (rows, groups, outputs a group).

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3))
    >>> batches = collect_batches([torch.ones(2, 1, 5, 5)], net)
    >>> sample_responses(net, ["0"], batches, Positions(100, seed=0))["0"].shape
    torch.Size([18, 1, 4])
    """
    responses: dict[str, list[Tensor]] = {}

    def record(name: str, layer: nn.Module) -> Callable[..., None]:
        groups = layer.groups if isinstance(layer, CONVS) else 1

        @outside_contexts()
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            if isinstance(layer, CONVS):
                order = len(layer.kernel_size)
                out = out.movedim(-order - 1, -1)
            out = batch.unpadded(layer, out)
            rows, before = out.reshape(-1, out.shape[-1]), responses.setdefault(name, [])
            if len(rows) > positions.most:
                random = positions.random(batch=len(before))
                chosen = torch.randint(len(rows), (positions.most,), generator=random)
                rows = rows[chosen.to(rows.device)]
            rows = rows.to(torch.float32, copy=True)  # what follows may change it in place
            before.append(rows.reshape(len(rows), groups, -1))

        return hook

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model))
        for name in names:
            layer = model.get_submodule(name)
            stack.callback(layer.register_forward_hook(record(name, layer)).remove)
        for batch in batches:
            run_model(model, batch)
    once = [name for name, rows in responses.items() if len(rows) == len(batches)]
    return {name: torch.cat(responses.pop(name)) for name in once}  # never two copies of all


def inputs_in_order(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], positions: Positions
) -> Iterator[tuple[str, Tensor]]:
    """Yield what layers multiply their weights with, at the same positions.

    A layer may be replaced once it was yielded; those after it then see what it leaves.

    Parameters
    ----------
    model, batches, positions
        As for `sample_responses`.
    names : sequence of str
        The layers that it returns responses of.

    Yields
    ------
    tuple of str and Tensor
        A name, and rows of shape (rows, groups, columns).

    Raises
    ------
    InvalidArgumentError
        For inputs that are not finite, or batches that call layers in different orders.
    """
    for name, inputs in capture_inputs(model, names, batches):
        layer = model.get_submodule(name)
        with torch.no_grad():
            parts = [
                unfold_inputs(
                    layer, batch.unpadded(layer, x), positions.most, positions.random(number)
                ).float()
                for number, (batch, x) in enumerate(zip(batches, inputs, strict=True))
            ]
        rows = torch.cat(parts)
        del inputs, parts  # or they would stay in memory while the passes go on
        if not bool(torch.isfinite(torch.stack(torch.aminmax(rows))).all()):
            raise InvalidArgumentError(f"an input of layer {name!r} is NaN or infinite")
        yield name, rows
