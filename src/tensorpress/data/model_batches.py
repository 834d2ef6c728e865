"""Batches of model inputs from the examples of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset, default_collate

from tensorpress.data.class_numbers import class_numbers
from tensorpress.data.source import Batches, Example, Examples, Part, Selection, Source, shuffle
from tensorpress.data.tokens import (
    example_length,
    load_tokenizer,
    padded_batch,
    token_blocks,
)
from tensorpress.data.transforms import (
    ImageOptions,
    describe_content,
    find_transform,
    is_image,
)
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode
from tensorpress.measure.model_inputs import ModelInputs
from tensorpress.measure.perplexity import is_language_model
from tensorpress.models.inputs import input_error

BATCH, TEXT_BATCH = 64, 8
"""Examples per batch, of images and of text."""

NO_LABEL = -100
"""The label of examples without one, which torch's losses ignore."""

TEXT_BLOCKS = 128
"""Number of text blocks that suffice to calibrate a language model."""

_AS_IT_IS = "as the model takes them"


@dataclass(frozen=True)
class ModelBatches:
    """Batches that can be iterated any number of times.

    Attributes
    ----------
    batches : iterable
        Batches of inputs, of pairs (inputs, labels), or of mappings from argument names, with
        ``labels``.
    text : str
        A description of the preprocessing.
    """

    batches: Iterable[Any]
    text: str


def model_batches(
    source: Source,
    part: Part | None,
    model: nn.Module,
    name: str | None = None,
    *,
    options: ImageOptions | None = None,
    sample: int | None = None,
) -> ModelBatches:
    """Return batches of model inputs from a part of a source.

    Images are preprocessed for the model (`find_transform`). Texts are tokenized: into consecutive
    blocks for a language model, and one example per text for other models. Arrays and batches of a
    function are passed to the model unchanged, except that floating-point arrays get its dtype.

    Parameters
    ----------
    source : Source
        The source.
    part : Examples or Batches
        The part: ``source.test``, ``source.train``, or a part from ``source.divide()``, which
        reserves a fifth of a source without parts for tests.
    model : nn.Module
        The model.
    name : str, optional
        The name of the model, as in `tensorpress.models.load_model`, which determines the
        preprocessing of images and text.
    options : ImageOptions, optional
        Preprocessing of images, if the name of the model does not determine it, or to override it.
    sample : int, optional
        Number of examples, drawn at random but always the same; by default all.

    Raises
    ------
    InvalidArgumentError
        If the part is None or has no examples, the model does not accept them, their preprocessing
        is unknown, or the classes do not match.
    TensorPressError
        If a package is missing.

    Examples
    --------
    >>> from tensorpress.data.sources import open_source
    >>> from tensorpress.models import load_model
    >>> digits = open_source("digits")
    >>> data = model_batches(digits, digits.test, load_model("lenet5"), "lenet5", sample=100)
    >>> [inputs.shape[0] for inputs, labels in data.batches], data.text
    ([64, 36], '28×28, pixels over 256, minus 0, over 1')
    """
    if part is None:
        raise InvalidArgumentError(
            f"{source.name} has no parts train and test, only source.test with all examples: use "
            "source.divide(), which returns two parts"
        )
    if isinstance(part, Batches):
        batches = _first_batches(part, sample)
        if batches == []:
            raise InvalidArgumentError(
                f"{source.name} has no batches, or is an iterator that was used before"
            )
        return ModelBatches(batches, _AS_IT_IS)
    if not len(part):
        raise InvalidArgumentError(f"{source.name} has no examples")
    content, label = part[0]
    if isinstance(content, str):
        return _text_batches(source, part, model, name, sample)
    examples = part
    if sample is not None and sample < len(part):
        examples = Selection(part, shuffle(len(part))[:sample])
    prepare, text = None, _AS_IT_IS
    if is_image(content):
        transform = find_transform(name, model, options, content)
        prepare, text = transform.apply, transform.text
    elif not isinstance(content, Tensor | Mapping | tuple):
        raise InvalidArgumentError(
            f"{source.name} has {describe_content(content)}: expected images, texts, tensors or "
            "mappings of tensors"
        )
    prepared = _Prepared(examples, prepare, _floating_dtype(model))
    try:
        outputs = count_outputs(model, default_collate([prepared[0][0]]))
    except InvalidArgumentError as error:
        how = "" if prepare is None else f" (preprocessing of images: {text})"
        raise InvalidArgumentError(f"{source.name}: {error}{how}") from error
    numbers = None
    if source.classes and label is not None:
        numbers = class_numbers(source, name, model, outputs)
    collate = _Collate(label is not None, numbers)
    return ModelBatches(_loader(prepared, BATCH, collate), text)


def count_outputs(model: nn.Module, inputs: Any) -> int | None:
    """Return the number of a model's classes, or None if it is not a classifier.

    A model on the meta device is not run, and returns None as well.

    Raises
    ------
    InvalidArgumentError
        If the model fails on the inputs.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "meta":
        return None
    arguments = ModelInputs.parse(inputs).map(lambda x: x.to(device))
    try:
        with evaluation_mode(model), torch.no_grad():
            output = arguments.run(model)
    except Exception as error:
        raise input_error(model, arguments, error) from error
    logits = getattr(output, "logits", output)
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else None


def _floating_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of a model, or None if it has no floating-point parameters."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    return next((p.dtype for p in model.parameters() if p.dtype in dtypes), None)


class _Prepared(Dataset[Example]):
    """Preprocessed examples, whose floating-point values have a given dtype."""

    def __init__(
        self,
        examples: Examples,
        prepare: Callable[[Any], Tensor] | None,
        dtype: torch.dtype | None,
    ) -> None:
        self._examples, self._prepare, self._dtype = examples, prepare, dtype

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        content, label = self._examples[index]
        content = content if self._prepare is None else self._prepare(content)
        return tree_map_only(Tensor, self._cast, content), label

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self._dtype) if x.is_floating_point() else x


@dataclass(frozen=True)
class _Collate:
    """A function from examples to a batch, with the model's class numbers as labels."""

    labelled: bool
    numbers: tuple[int, ...] | None = None

    def __call__(self, examples: list[Example]) -> Any:
        try:
            inputs = default_collate([content for content, _ in examples])
        except (RuntimeError, TypeError, KeyError) as error:
            raise InvalidArgumentError(
                f"the examples cannot form a batch, because their shapes differ: {error}"
            ) from error
        return self.join(inputs, [label for _, label in examples])

    def join(self, inputs: Any, labels: list[int | None]) -> Any:
        if not self.labelled:
            return inputs
        values = [x if self.numbers is None or x is None else self.numbers[x] for x in labels]
        numbers = torch.tensor([NO_LABEL if value is None else value for value in values])
        return {**inputs, "labels": numbers} if isinstance(inputs, Mapping) else (inputs, numbers)


def _loader(examples: Any, size: int, collate: Callable[[list[Any]], Any]) -> DataLoader[Any]:
    # A DataLoader without a generator draws from the global one in every pass.
    return DataLoader(examples, batch_size=size, collate_fn=collate, generator=torch.Generator())


def _first_batches(batches: Batches, sample: int | None) -> Iterable[Any]:
    """Return all batches, or a list of the first ones with at least ``sample`` examples."""
    if sample is None:
        return batches
    result, count = [], 0
    for batch in batches:
        result.append(batch)
        count += _batch_size(batch)
        if count >= sample:
            break
    return result


def _batch_size(batch: Any) -> int:
    while not isinstance(batch, Tensor):
        values = list(batch.values()) if isinstance(batch, Mapping) else batch
        if not isinstance(values, list | tuple) or not values:
            return 1
        batch = values[0]
    return len(batch) if batch.ndim else 1


def _text_batches(
    source: Source, part: Examples, model: nn.Module, name: str | None, sample: int | None
) -> ModelBatches:
    tokenizer = load_tokenizer(name)
    length = example_length(tokenizer, model)
    if is_language_model(model):
        most = None if sample is None else min(sample, TEXT_BLOCKS)
        texts = (part[index][0] for index in range(len(part)))
        blocks = token_blocks(texts, tokenizer, length, most)
        text = f"{len(blocks):,} blocks of {length} tokens"
        return ModelBatches(_loader(blocks, TEXT_BATCH, _language_batch), text)
    examples = [
        example for example in map(part.__getitem__, range(len(part))) if example[0].strip()
    ]
    if sample is not None and sample < len(examples):
        examples = [examples[index] for index in shuffle(len(examples))[:sample]]
    collate = _Collate(any(label is not None for _, label in examples))
    if source.classes and collate.labelled:
        outputs = count_outputs(model, padded_batch([examples[0][0]], tokenizer, length))
        collate = replace(collate, numbers=class_numbers(source, name, model, outputs))

    def text_batch(batch: list[Example]) -> Any:
        inputs = padded_batch([text.strip() for text, _ in batch], tokenizer, length)
        return collate.join(inputs, [label for _, label in batch])

    text = f"tokens of {type(tokenizer).__name__}, at most {length}"
    return ModelBatches(_loader(examples, TEXT_BATCH, text_batch), text)


def _language_batch(blocks: list[Tensor]) -> dict[str, Tensor]:
    tokens = torch.stack(blocks)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
