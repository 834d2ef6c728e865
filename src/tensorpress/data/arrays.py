"""Arrays in NumPy and safetensors files: inputs or pixels, and labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tensorpress.data.source import TEST, TRAIN, Example, Source
from tensorpress.errors import CorruptFileError, InvalidArgumentError

LABELS = ("labels", "label", "y", "targets", "target", "classes")
INPUTS = ("inputs", "images", "pixels", "x", "data", "input_ids")
"""Names by which labels and inputs are recognized."""


@dataclass(frozen=True)
class ArrayExamples:
    """Rows of arrays.

    Parameters
    ----------
    inputs : Tensor or mapping of str to Tensor
        The inputs, or arguments by name, all with the same number of rows.
    labels : Tensor or None
        int64, shape ``(N,)``.
    """

    inputs: Tensor | Mapping[str, Tensor]
    labels: Tensor | None

    def __len__(self) -> int:
        first = self.inputs if isinstance(self.inputs, Tensor) else next(iter(self.inputs.values()))
        return len(first)

    def __getitem__(self, index: int, /) -> Example:
        label = None if self.labels is None else int(self.labels[index])
        if isinstance(self.inputs, Tensor):
            return self.inputs[index], label
        return {key: value[index] for key, value in self.inputs.items()}, label


def read_arrays(path: Path) -> Source:
    """Return the examples of a ``.npy``, ``.npz`` or ``.safetensors`` file.

    A single array, or the one named ``inputs``, ``images`` or ``x``, has the inputs, one example
    per row; ``labels`` or ``y`` has the classes. Arrays of training and test parts are named
    ``x_train``, ``y_train``, ``x_test`` and ``y_test``. Pixels are uint8 of shape (N, H, W), (N, H,
    W, C) or (N, C, H, W) with one or three channels, and are preprocessed like images; other arrays
    are passed to the model unchanged. Tokens are ``input_ids``; other arrays next to them are also
    arguments of the model.

    Raises
    ------
    CorruptFileError
        If the file is damaged, or has Python objects.
    InvalidArgumentError
        If it is unclear which array has the inputs, there are no examples, or the arrays differ in
        length or are complex.
    """
    tensors = _load(path)
    if not tensors:
        raise InvalidArgumentError(f"{path} has no arrays, expected an array of inputs")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, part = name.rpartition("_")
        inside = part in (*TRAIN, *TEST) and key
        parts.setdefault(part if inside else "", {})[key if inside else name] = tensor
    examples = {part: _examples(path, content) for part, content in parts.items()}
    return Source.from_parts(str(path), examples)


def read_token_rows(path: Path) -> Tensor:
    """Return the array ``input_ids`` of a file, or of its test part, of shape (rows, tokens).

    Raises
    ------
    CorruptFileError
        If the file is damaged, or has Python objects.
    InvalidArgumentError
        If there is no such array of integers, or a row is padded.
    """
    examples = read_arrays(path).test
    inputs = examples.inputs if isinstance(examples, ArrayExamples) else {}
    arrays = {} if isinstance(inputs, Tensor) else inputs
    tokens = arrays.get("input_ids")
    if tokens is None or tokens.ndim != 2 or tokens.is_floating_point():
        raise InvalidArgumentError(
            f"{path}: perplexity needs an array input_ids of integers (rows, tokens), or a text "
            "file and the tokenizer of the folder"
        )
    mask = arrays.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise InvalidArgumentError(
            f"{path}: the attention_mask has zeros, but perplexity needs rows without padding"
        )
    return tokens.long()


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = np.load(path, allow_pickle=False)
        arrays = {"inputs": content} if isinstance(content, np.ndarray) else dict(content)
        native = {name: x.astype(x.dtype.newbyteorder("="), "C") for name, x in arrays.items()}
        return {name: torch.from_numpy(x) for name, x in native.items()}
    except Exception as error:  # parsers raise errors of any class on damaged files
        # NumPy regards files that are neither .npy nor .npz as pickles and advises to run them
        reason = "it is not an array file, or contains objects" if "pickle" in str(error) else error
        raise CorruptFileError(f"{path} cannot be read as arrays of numbers: {reason}") from error


def _examples(path: Path, tensors: Mapping[str, Tensor]) -> ArrayExamples:
    for array, tensor in tensors.items():
        if tensor.is_complex():
            raise InvalidArgumentError(
                f"{path}: the array {array} is {tensor.dtype}, expected real numbers"
            )
        if tensor.ndim and not len(tensor):
            raise InvalidArgumentError(
                f"{path} has no examples: the array {array} has shape {tuple(tensor.shape)}, "
                "expected one row per example"
            )
    by_name = {name.lower(): tensor for name, tensor in tensors.items()}
    labels = next((by_name.pop(name) for name in LABELS if name in by_name), None)
    lengths = {
        len(x) if x.ndim else 0 for x in (*by_name.values(), *([] if labels is None else [labels]))
    }
    if len(lengths) != 1 or 0 in lengths:
        raise InvalidArgumentError(
            f"{path}: the arrays {', '.join(tensors)} must have one row per example"
        )
    labels = None if labels is None else _class_numbers(labels)
    if "input_ids" in by_name:
        return ArrayExamples(by_name, labels)
    name = next((name for name in INPUTS if name in by_name), None)
    if name is None and len(by_name) == 1:
        [name] = by_name
    if name is None:
        raise InvalidArgumentError(
            f"{path} has the arrays {', '.join(tensors)}: name the inputs {INPUTS[0]} and the "
            f"classes {LABELS[0]}"
        )
    return ArrayExamples(_channels_first(by_name[name]), labels)


def _class_numbers(labels: Tensor) -> Tensor | None:
    """Return classes, which may be one-hot, as int64 of shape (N,); None for other targets."""
    rows = labels.reshape(len(labels), -1)
    if rows.shape[1] > 1:
        one_hot = bool(((rows == 0) | (rows == 1)).all()) and bool((rows.sum(1) == 1).all())
        return rows.argmax(1) if one_hot else None
    numbers = rows[:, 0].long()
    return numbers if torch.equal(numbers.to(labels.dtype), rows[:, 0]) else None


def _channels_first(inputs: Tensor) -> Tensor:
    """Return pixels as (N, C, H, W), and other arrays unchanged."""
    if inputs.dtype != torch.uint8:
        return inputs
    if inputs.ndim == 3:
        return inputs[:, None]
    if inputs.ndim == 4 and inputs.shape[-1] in (1, 3) and inputs.shape[1] not in (1, 3):
        return inputs.movedim(-1, 1)
    return inputs
