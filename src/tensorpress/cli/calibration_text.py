"""Texts as a language model takes them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError
from tensorpress.models.hugging_face import transformers_library

LENGTH = 512
"""Most tokens of an example."""

TOKENS = 32 * LENGTH
"""Number of tokens that are looked at."""

CHARACTERS = 16 * TOKENS
"""Of a text no more is read: a token has four letters on average."""

TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
"""Names of files of tokenizers."""


def load_calibration_text(folder: Path, model: nn.Module, path: Path) -> list[dict[str, Tensor]]:
    """Return batches of one example each, 16,384 tokens together or as many as there are.

    Parameters
    ----------
    folder : Path
        The checkpoint, with its tokenizer.
    model : nn.Module
        Its model, which may be on the meta device: its config limits the length of an example.
    path : Path
        A text, which is cut into pieces of 512 tokens; or JSON lines, one example each, with the
        key ``text`` or ``input_ids``.

    Raises
    ------
    DataNotFoundError
        If there is no such file.
    CorruptFileError
        If a line is no such object.
    InvalidArgumentError
        If there is a text and no tokenizer, or a token that the model does not have, or nothing.
    """
    if not path.is_file():
        raise DataNotFoundError(
            f"--data of a checkpoint names a text file or a .jsonl file, and {path} is none"
        )
    config = getattr(model, "config", None)
    length = min(LENGTH, getattr(config, "max_position_embeddings", LENGTH))
    known = getattr(config, "vocab_size", None)
    examples = _read_lines(folder, path) if path.suffix == ".jsonl" else _read_text(folder, path)
    batches: list[dict[str, Tensor]] = []
    left = TOKENS
    for tokens in examples:
        unknown = [token for token in tokens if token < 0 or (known and token >= known)]
        if unknown:
            raise InvalidArgumentError(f"{path} has token {unknown[0]}, of {known} of the model")
        for piece in torch.split(torch.tensor(tokens, dtype=torch.long), length):
            if left <= 0:
                return batches
            if len(piece) > 1:
                batches.append({"input_ids": piece[None, :left]})
                left -= len(piece)
    if not batches:
        raise InvalidArgumentError(f"{path} has no tokens")
    return batches


def _read_text(folder: Path, path: Path) -> Iterator[list[int]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        yield _load_tokenizer(folder)(file.read(CHARACTERS))["input_ids"]


def _read_lines(folder: Path, path: Path) -> Iterator[list[int]]:
    tokenizer = None
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            example = _parse_line(line)
            if isinstance(example, list):
                yield example
            elif isinstance(example, str):
                tokenizer = tokenizer or _load_tokenizer(folder)
                yield tokenizer(example)["input_ids"]
            else:
                raise CorruptFileError(
                    f'{path}, line {number}: expected {{"text": "..."}} or {{"input_ids": [...]}}'
                )


def _parse_line(line: str) -> str | list[int] | None:
    """Return the text or the tokens of a line, None where it has neither."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    tokens, text = content.get("input_ids"), content.get("text")
    if isinstance(tokens, list) and all(type(token) is int for token in tokens):
        return tokens
    return text if isinstance(text, str) else None


def _load_tokenizer(folder: Path) -> Any:
    library = transformers_library()
    reason = "no file of one"  # for which transformers makes an empty one
    if any(path for pattern in TOKENIZERS for path in folder.glob(pattern)):
        try:
            return library.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # of several libraries below
            reason = type(error).__name__
    raise InvalidArgumentError(
        f"{folder} has no tokenizer that can be read ({reason}): calibrate on a .jsonl file with "
        "input_ids"
    )
