"""What a model returns, as tensors: of any structure that models return."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, run_model
from tensorpress.errors import InvalidArgumentError

_STATES = ("past_key_values", "hidden_states", "attentions", "decoder_hidden_states")
"""What models of Transformers return beside their outputs."""


def output_tensors(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Run a model and return the floating-point tensors of what it returns, float32 at least.

    They are found in tuples, lists, mappings and dataclasses, in their order. Of an output with
    ``logits``, as models of Transformers return, those alone count.

    Parameters
    ----------
    model : nn.Module
        A model.
    batch : Batch
        Its inputs.

    Raises
    ------
    InvalidArgumentError
        If there is no floating-point tensor in what the model returns.

    Examples
    --------
    >>> class Halves(nn.Module):
    ...     def forward(self, x):
    ...         return {"left": x[:, :2], "right": (x[:, 2:],)}
    >>> [tuple(t.shape) for t in output_tensors(Halves(), Batch((torch.zeros(1, 4),), None))]
    [(1, 2), (1, 2)]
    """
    output = run_model(model, batch)
    logits = getattr(output, "logits", None)
    tensors = list(floating_tensors(output if logits is None else logits))
    if not tensors:
        raise InvalidArgumentError(
            f"the model returns {type(output).__name__} without a floating-point tensor, so that "
            "nothing tells how much its outputs change"
        )
    return [tensor.float() if tensor.element_size() < 4 else tensor for tensor in tensors]


def floating_tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of an output of any structure, in order."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel():
            yield output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            if name not in _STATES:
                yield from floating_tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from floating_tensors(value)
    elif is_dataclass(output):
        for field in fields(output):
            if field.name not in _STATES:
                yield from floating_tensors(getattr(output, field.name))


def random_direction(tensors: list[Tensor], generator: torch.Generator) -> Tensor:
    """Return the sum of the outputs' values, each times a random number of unit variance."""
    return torch.stack(
        [(t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in tensors]
    ).sum()
