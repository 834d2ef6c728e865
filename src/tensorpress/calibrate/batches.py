"""Calibration batches in memory: inputs in the form that the model takes, and labels."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.layer_spec import CONVS
from tensorpress.utils.tensor_hash import fingerprint

CalibrationBatch = Tensor | tuple[Any, Any] | list[Any] | Mapping[str, Any]
"""A batch as users give it: inputs, (inputs, labels), or arguments by name, as tokenizers do."""

MASK = "attention_mask"
"""The argument, (examples, tokens), that says which tokens are no padding."""


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes
    ----------
    inputs : tuple of Tensor
        Positional arguments of the model, the first axis being the batch.
    labels : Tensor or None
        What the loss and the error compare the outputs to.
    named : mapping from str to Tensor
        Arguments by name. Where one is the mask of attention, padding is not looked at.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    named: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter((*self.inputs, *self.named.values()))))

    def unpadded(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return the tokens that are no padding, of the inputs or outputs of a layer.

        That is (tokens, channels) of a Linear's (examples, tokens, channels), and anything else as
        it is.
        """
        mask = self.named.get(MASK)
        if mask is None or isinstance(layer, CONVS) or x.shape[:-1] != mask.shape:
            return x
        return x[mask.bool()]


def collect_batches(batches: Iterable[CalibrationBatch], model: nn.Module) -> list[Batch]:
    """Return batches in memory, on the device of a model, so that all runs see the same.

    Parameters
    ----------
    batches : iterable
        Of Tensor, of pairs (inputs, labels) or of mappings, which are arguments by name but for
        ``labels``. Inputs are a Tensor, or a tuple of them.
    model : nn.Module
        It decides the device.

    Raises
    ------
    InvalidArgumentError
        For no batches, or something else.

    Examples
    --------
    >>> [batch] = collect_batches([(torch.zeros(4, 3), torch.arange(4))], nn.Linear(3, 2))
    >>> len(batch.inputs), len(batch)
    (1, 4)
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    result = [_batch(batch, device) for batch in batches]
    if not result:
        raise InvalidArgumentError("there is nothing to measure on: batches is empty")
    return result


def digest(batches: Iterable[Batch]) -> str:
    """Return a fingerprint of all inputs and labels."""
    return fingerprint(
        tensor
        for batch in batches
        for tensor in (*batch.inputs, *dict(sorted(batch.named.items())).values(), batch.labels)
        if tensor is not None
    )


@contextmanager
def outside_contexts() -> Iterator[None]:
    """Compute in a hook as outside of the model's forward, whatever contexts that has entered.

    That is without gradients, inference mode, autocast and function modes.

    Examples
    --------
    >>> with torch.autocast("cpu", torch.bfloat16), outside_contexts():
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.float32
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch._C._DisableAutocast(),
        torch._C.DisableTorchFunction(),
    ):
        yield


def run_model(model: nn.Module, batch: Batch) -> Any:
    """Run a forward pass and return whatever the model returns."""
    return model(*batch.inputs, **batch.named)


def model_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Return the outputs of a model, float32 at least: a Tensor, or its ``logits``.

    Raises
    ------
    InvalidArgumentError
        Where it returns something else.
    """
    result = run_model(model, batch)
    outputs = getattr(result, "logits", result)
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        raise InvalidArgumentError(
            f"the model returns {type(outputs).__name__}, where a Tensor or an object with logits "
            "is expected: wrap it in a module that returns one"
        )
    return outputs.float() if outputs.element_size() < 4 else outputs


def _batch(batch: CalibrationBatch, device: torch.device) -> Batch:
    if isinstance(batch, Mapping):
        return _by_name(batch, device)
    inputs, labels = (batch, None) if isinstance(batch, Tensor) else _pair(batch)
    arguments = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    tensors = all(isinstance(value, Tensor) for value in arguments)
    if not arguments or not tensors or not isinstance(labels, Tensor | None):
        raise _misfit(batch)
    if arguments[0].ndim == 0 or len(arguments[0]) == 0:
        raise InvalidArgumentError("a batch of no examples cannot be measured on")
    return Batch(
        tuple(value.to(device) for value in arguments),
        None if labels is None else labels.to(device),
    )


def _by_name(batch: Mapping[str, Any], device: torch.device) -> Batch:
    named = {key: value for key, value in batch.items() if key != "labels"}
    labels = batch.get("labels")
    tensors = all(isinstance(value, Tensor) and value.ndim for value in named.values())
    if not named or not tensors or not isinstance(labels, Tensor | None):
        raise _misfit(batch)
    if any(len(value) == 0 for value in named.values()):
        raise InvalidArgumentError("a batch of no examples cannot be measured on")
    mask = named.get(MASK)
    if mask is not None and not bool(mask.any()):
        raise InvalidArgumentError(f"a batch with {MASK} all zero has nothing to measure on")
    return Batch(
        (),
        None if labels is None else labels.to(device),
        {key: value.to(device) for key, value in named.items()},
    )


def _pair(batch: object) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise _misfit(batch)
    return batch[0], batch[1]


def _misfit(batch: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        "a batch is a Tensor of inputs, a pair (inputs, labels), inputs being a Tensor or a tuple "
        f"of them, or a mapping from names of arguments to Tensors; got {type(batch).__name__}"
    )
