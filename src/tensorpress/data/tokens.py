"""Tokenized texts for Transformers models."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError, first_line
from tensorpress.measure.perplexity import longest_context
from tensorpress.models.hugging_face import transformers_library
from tensorpress.models.names import parse_name

TOKENS = 512
"""Tokens of a text block, and the maximum for an example."""

FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
"""Patterns of tokenizer files."""

_CHARACTERS = 8  # most characters of a token, on average


def load_tokenizer(name: str | None) -> Any:
    """Return the tokenizer that belongs to a Transformers model.

    Raises
    ------
    InvalidArgumentError
        If it is not a Transformers model, or has no tokenizer.
    TensorPressError
        If transformers is not installed.
    """
    parsed = None if name is None else parse_name(name)
    if parsed is None or parsed.origin != "hf":
        raise InvalidArgumentError(
            f"text needs the tokenizer of a Transformers model, hf:FOLDER, got "
            f"{name or 'another model'}: pass arrays, or batches from a function"
        )
    folder = Path(parsed.name)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in FILES):
        # for which transformers may return an empty tokenizer
        raise InvalidArgumentError(f"hf:{parsed.name} has no tokenizer files")
    transformers = transformers_library()
    try:
        return transformers.AutoTokenizer.from_pretrained(parsed.name, trust_remote_code=False)
    except Exception as error:  # of the library
        reason = first_line(error)
        raise InvalidArgumentError(f"hf:{parsed.name} has no tokenizer: {reason}") from error


def example_length(tokenizer: Any, model: Any) -> int:
    """Return the maximum number of tokens per example, at most `TOKENS`."""
    return int(min(TOKENS, longest_context(model), tokenizer.model_max_length))


def token_blocks(
    texts: Iterable[str], tokenizer: Any, length: int, most: int | None = None
) -> list[Tensor]:
    """Return blocks of ``length`` tokens from concatenated texts, without the rest at the end.

    Parameters
    ----------
    texts : iterable of str
        Consecutive lines with their line breaks, or whole texts, after each of which an end token
        is added.
    tokenizer
        A tokenizer of transformers.
    length : int
        Tokens per block.
    most : int, optional
        The largest number of blocks.

    Raises
    ------
    InvalidArgumentError
        If the texts do not fill one block.
    """
    end = tokenizer.eos_token or "\n"
    pieces, characters = [], 0
    for text in texts:
        pieces.append(text if text.endswith("\n") else text + end)
        characters += len(pieces[-1])
        if most is not None and characters > most * length * _CHARACTERS:
            break
    tokens = tokenizer("".join(pieces), verbose=False)["input_ids"][: most and most * length]
    count = len(tokens) // length
    if not count:
        raise InvalidArgumentError(
            f"the text has {len(tokens)} tokens, expected at least a block of {length}"
        )
    return list(torch.tensor(tokens[: count * length]).reshape(count, length))


def padded_batch(texts: list[str], tokenizer: Any, length: int) -> dict[str, Tensor]:
    """Return texts as a batch of arguments by name, padded to the longest."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return dict(batch)
