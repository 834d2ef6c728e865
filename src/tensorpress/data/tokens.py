"""Texts as the tokens of a model of transformers."""

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
"""Tokens of a block of text, or the most of an example."""

FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
"""Names of files of tokenizers."""

_CHARACTERS = 8  # of a token, at the most, on average


def load_tokenizer(name: str | None) -> Any:
    """Return the tokenizer beside the weights of a model of transformers.

    Raises
    ------
    InvalidArgumentError
        If the model is no model of transformers, or has no tokenizer.
    TensorPressError
        If transformers is missing.
    """
    parsed = None if name is None else parse_name(name)
    if parsed is None or parsed.origin != "hf":
        raise InvalidArgumentError(
            f"text needs the tokenizer of a model of transformers, hf:FOLDER, not "
            f"{name or 'this model'}; what another model takes are arrays, or batches of a "
            "function"
        )
    folder = Path(parsed.name)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in FILES):
        # for which transformers may make an empty one
        raise InvalidArgumentError(f"hf:{parsed.name} has no tokenizer: no file of one")
    transformers = transformers_library()
    try:
        return transformers.AutoTokenizer.from_pretrained(parsed.name, trust_remote_code=False)
    except Exception as error:  # of the libraries below
        reason = first_line(error)
        raise InvalidArgumentError(f"hf:{parsed.name} has no tokenizer: {reason}") from error


def example_length(tokenizer: Any, model: Any) -> int:
    """Return how many tokens an example may have, `TOKENS` at most."""
    return int(min(TOKENS, longest_context(model), tokenizer.model_max_length))


def token_blocks(
    texts: Iterable[str], tokenizer: Any, length: int, most: int | None = None
) -> list[Tensor]:
    """Return blocks of ``length`` tokens of texts in a row, without the rest at the end.

    Parameters
    ----------
    texts : iterable of str
        Lines with their line breaks, which go on, or whole texts, each followed by the token of an
        end.
    tokenizer
        A tokenizer of transformers.
    length : int
        Tokens of a block.
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
    """Return texts as one batch of arguments by name, padded to the longest."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return dict(batch)
