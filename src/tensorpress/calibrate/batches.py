"""Calibration batches in memory: arguments of the model, and labels."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, IterableDataset

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.model_inputs import ModelInputs, quote_model_errors
from tensorpress.schemes.layer_spec import CONVS
from tensorpress.utils.tensor_hash import fingerprint

CalibrationBatch = Tensor | tuple[Any, Any] | list[Any] | Mapping[str, Any]
"""A batch as users give it: inputs, (inputs, labels), or arguments by name, as tokenizers do."""

FORMS = (
    "a batch must be a Tensor of inputs, a mapping of arguments by name, or a pair (inputs, "
    "labels) whose inputs are a Tensor, a tuple of arguments or such a mapping"
)
"""The forms of a batch, for errors."""

MASK = "attention_mask"
"""The argument, (examples, tokens), that marks tokens that are not padding."""


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes
    ----------
    inputs : tuple
        Positional arguments of the model. The first axis of the first Tensor is the batch.
    labels : Tensor or None
        Labels for the loss and the error.
    named : mapping from str to Any
        Arguments by name. If there is an attention mask, padding is ignored.
    """

    inputs: tuple[Any, ...]
    labels: Tensor | None
    named: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> ModelInputs:
        """All arguments of the model."""
        return ModelInputs(self.inputs, self.named)

    def __len__(self) -> int:
        return self.arguments.batch

    def unpadded(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Drop the padding from inputs or outputs of a layer.

        (examples, tokens, channels) of a Linear become (tokens, channels); others are unchanged.
        """
        mask = self.named.get(MASK)
        if not isinstance(mask, Tensor) or isinstance(layer, CONVS) or x.shape[:-1] != mask.shape:
            return x
        return x[mask.bool()]


def collect_batches(batches: Iterable[CalibrationBatch], model: nn.Module) -> list[Batch]:
    """Load batches into memory, on the device of a model, so that all runs see the same data.

    Parameters
    ----------
    batches : iterable
        Tensors, pairs (inputs, labels), or mappings of arguments by name with optional ``labels``.
        Inputs are a Tensor, a mapping, or a tuple of arguments, which may be nested or scalars.
        Labels that are not a Tensor are left out.
    model : nn.Module
        Gives the device.

    Raises
    ------
    InvalidArgumentError
        If there are no batches or no examples, or a batch has another form.

    Examples
    --------
    >>> [batch] = collect_batches([(torch.zeros(4, 3), torch.arange(4))], nn.Linear(3, 2))
    >>> len(batch.inputs), len(batch)
    (1, 4)
    """
    check_batches(batches)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    result = [_batch(batch, device) for batch in batches]
    if not result:
        raise InvalidArgumentError("batches is empty, or an iterator that is exhausted")
    return result


def check_batches(batches: object) -> None:
    """Raise an `InvalidArgumentError` for a single batch, or for single examples."""
    if isinstance(batches, Tensor | Mapping):
        name = "Tensor" if isinstance(batches, Tensor) else type(batches).__name__
        raise InvalidArgumentError(f"a {name} is one batch: give a list of batches, [batch]")
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise InvalidArgumentError(
            f"a {type(batches).__name__} has single examples: give batches of them, "
            "torch.utils.data.DataLoader(dataset, batch_size=32)"
        )
    if not isinstance(batches, Iterable):
        raise InvalidArgumentError(f"batches must be an iterable, not {type(batches).__name__}")
    if isinstance(batches, tuple) and len(batches) == 2 and _are_labels(*batches):
        raise InvalidArgumentError("a pair (inputs, labels) is one batch: give a list, [pair]")


def _are_labels(inputs: object, labels: object) -> bool:
    """Tell whether the second Tensor has integer labels, one per example of the first."""
    return (
        isinstance(inputs, Tensor)
        and isinstance(labels, Tensor)
        and labels.shape == inputs.shape[:1]
        and inputs.ndim > 1
        and not labels.is_floating_point()
    )


def digest(batches: Iterable[Batch]) -> str:
    """Return a fingerprint of all inputs and labels."""
    return fingerprint(
        leaf if isinstance(leaf, Tensor) else torch.tensor(list(repr(leaf).encode()))
        for batch in batches
        for leaf in tree_leaves((batch.inputs, dict(sorted(batch.named.items())), batch.labels))
        if leaf is not None
    )


@contextmanager
def outside_contexts() -> Iterator[None]:
    """Leave the contexts of a model's forward pass within a hook.

    These are gradients, inference mode, autocast and function modes.

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
    """Run a forward pass and return whatever the model returns.

    The model gets copies, because it may change its inputs in place. Torch's fast path of attention
    is disabled, because it skips layers with hooks and packs padded batches as nested tensors.

    Raises
    ------
    InvalidArgumentError
        If the model fails on the inputs.
    """
    inputs = batch.arguments
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quote_model_errors(inputs):
            return inputs.map(torch.clone).run(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def model_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Return the output Tensor of a model, or its ``logits``, in float32 or wider.

    Raises
    ------
    InvalidArgumentError
        If the model returns something else.
    """
    output = run_model(model, batch)
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise InvalidArgumentError(
            f"the model returns {type(output).__name__} instead of a Tensor or an object with "
            "logits: wrap it in a module that returns one"
        )
    return output.float() if output.element_size() < 4 else output


def split_batch(batch: CalibrationBatch) -> tuple[ModelInputs, Any]:
    """Return the inputs and the labels of a batch in any of the `FORMS`.

    Raises
    ------
    InvalidArgumentError
        If it has another form, or its inputs contain no Tensor.

    Examples
    --------
    >>> inputs, labels = split_batch({"x": torch.zeros(4, 3), "labels": torch.arange(4)})
    >>> list(inputs.named), labels.shape
    (['x'], torch.Size([4]))
    """
    if isinstance(batch, Mapping):
        inputs: Any = {key: value for key, value in batch.items() if key != "labels"}
        labels = batch.get("labels")
    elif isinstance(batch, Tensor):
        inputs, labels = batch, None
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, labels = batch
    else:
        raise _misfit(batch)
    if not isinstance(labels, Tensor | list | tuple | Mapping | None):
        raise _misfit(batch)
    try:
        return ModelInputs.parse(inputs), labels
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{FORMS}: {error}") from None


def _batch(batch: CalibrationBatch, device: torch.device) -> Batch:
    arguments, labels = split_batch(batch)
    mask = arguments.named.get(MASK)
    if isinstance(mask, Tensor) and not bool(mask.any()):
        raise InvalidArgumentError(f"a batch with {MASK} all zero has no tokens to measure on")
    arguments = arguments.map(lambda x: x.to(device))
    labels = labels.to(device) if isinstance(labels, Tensor) else None
    return Batch(arguments.positional, labels, arguments.named)


def _misfit(batch: object) -> InvalidArgumentError:
    what = type(batch).__name__
    if isinstance(batch, tuple | list):
        what += f" of {', '.join(type(x).__name__ for x in batch)}"
    return InvalidArgumentError(f"{FORMS}; got {what}")


@contextmanager
def without_cache(*models: nn.Module) -> Iterator[None]:
    """Turn off the key-value cache of Transformers models, which grows whenever a block runs."""
    parts = (module for model in models for module in model.modules())
    configs: dict[int, Any] = {id(part.config): part.config for part in parts if _caches(part)}
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs.values():
            config.use_cache = True


def _caches(module: nn.Module) -> bool:
    return bool(getattr(getattr(module, "config", None), "use_cache", False))
