"""Perplexity of language models."""

import math
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.measure.cost import evaluation_mode

WINDOW = 2048
"""The usual number of tokens that a model sees at a time."""

CHUNK = 512
"""Number of positions whose log-probabilities are computed at a time."""


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes
    ----------
    perplexity : float
        exp of ``nll``.
    nll : float
        Mean negative log-likelihood of a predicted token, in nats.
    tokens : int
        Number of predicted tokens, one less than it has in every window.
    windows, window : int
        Number of windows, and of tokens in each.
    token_hash : str
        Sixteen hexadecimal digits of the tokens in all windows: numbers can be compared where they
        agree.
    """

    perplexity: float
    nll: float
    tokens: int
    windows: int
    window: int
    token_hash: str


def perplexity(
    model: nn.Module, tokens: Tensor, *, window: int | None = None, windows: int | None = None
) -> Perplexity:
    """Measure the perplexity of a causal language model on a text, by the usual protocol.

    The tokens of the whole text are cut into windows that do not overlap, and what does not fill a
    window is left out. In each the model predicts all tokens but the first from those before.

    Parameters
    ----------
    model : nn.Module
        A model of transformers, or any that returns scores of shape (1, positions, vocabulary) or
        an output with ``logits``. It runs in eval mode on its device, in its dtype.
    tokens : Tensor
        The text as integers of shape (length,), tokenized as a whole without special tokens.
    window : int, optional
        Number of tokens of a window; by default 2,048, or what model or text have if that is less.
    windows : int, optional
        Number of windows, from the start of the text; by default all.

    Raises
    ------
    InvalidArgumentError
        If the tokens are no sequence, shorter than a window or not of the model's vocabulary, or a
        window is longer than the longest context of the model.
    ModelMismatchError
        If the model's scores are not of every token.

    References
    ----------
    Frantar et al. (2023), "GPTQ", section 4: perplexity of WikiText2 in windows of 2,048 tokens.

    Examples
    --------
    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10))
    >>> _ = nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
    >>> result = perplexity(model, torch.arange(60) % 10, window=16)
    >>> round(result.perplexity, 3), result.windows, result.tokens
    (10.0, 3, 45)
    """
    rows = _cut_windows(model, tokens, window, windows)
    total, device = 0.0, next(model.parameters()).device
    with evaluation_mode(model), torch.inference_mode():
        for row in rows:
            total += _negative_log_likelihood(_scores(model, row.to(device)), row.to(device))
    count = rows.numel() - len(rows)
    digest = sha256(rows.numpy().tobytes()).hexdigest()[:16]
    mean = total / count
    return Perplexity(math.exp(mean), mean, count, len(rows), rows.shape[1], digest)


def _cut_windows(
    model: nn.Module, tokens: Tensor, window: int | None, windows: int | None
) -> Tensor:
    """Return the windows of a text, of shape (windows, window)."""
    if tokens.ndim != 1 or tokens.is_floating_point() or len(tokens) < 2:
        raise InvalidArgumentError(
            f"a text is a tensor of two or more integers, got {tuple(tokens.shape)} {tokens.dtype}"
        )
    _check_vocabulary(model, tokens)
    context = longest_context(model)
    size = min(WINDOW, context, len(tokens)) if window is None else window
    if size > context:
        raise InvalidArgumentError(
            f"a window of {size} tokens does not fit: the longest context of the model is {context}"
        )
    if not 2 <= size <= len(tokens):
        raise InvalidArgumentError(
            f"a window of {size} tokens does not fit: it has at least 2, the text {len(tokens)}"
        )
    count = len(tokens) // size
    if windows is not None:
        if not 1 <= windows <= count:
            raise InvalidArgumentError(
                f"the text has 1 to {count} windows of {size}, not {windows}"
            )
        count = windows
    return tokens[: count * size].reshape(count, size).cpu().to(torch.int64)


def _check_vocabulary(model: nn.Module, tokens: Tensor) -> None:
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    first, last = int(tokens.min()), int(tokens.max())
    if isinstance(size, int) and not 0 <= first <= last < size:
        raise InvalidArgumentError(
            f"the text has the token {last if last >= size else first}, but the vocabulary of the "
            f"model has {size}, from 0: it was tokenized for another model"
        )


def is_language_model(model: object) -> bool:
    """Return whether a model of transformers predicts the next token of a text."""
    kinds = getattr(getattr(model, "config", None), "architectures", None) or [type(model).__name__]
    return any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds)


def longest_context(model: nn.Module) -> int:
    """Return the largest number of positions of a model by its config, no limit without one."""
    config = getattr(model, "config", None)
    for key in ("max_position_embeddings", "n_positions"):
        value = getattr(config, key, None)
        if isinstance(value, int):
            return value
    return 2**62


def _scores(model: nn.Module, row: Tensor) -> Tensor:
    """Return the scores (positions, vocabulary) of one window."""
    output = model(row[None])
    scores = output if isinstance(output, Tensor) else output.logits
    if scores.ndim != 3 or scores.shape[:2] != (1, len(row)):
        raise ModelMismatchError(
            f"a language model scores every token of (1, {len(row)}), got {tuple(scores.shape)}"
        )
    result: Tensor = scores[0]
    return result


def _negative_log_likelihood(scores: Tensor, row: Tensor) -> float:
    """Return −Σ log p(xₜ | x₁ … xₜ₋₁) of one window, computed in float32 and summed in float64."""
    total = 0.0
    for start in range(0, len(row) - 1, CHUNK):
        end = min(start + CHUNK, len(row) - 1)
        scored, following = scores[start:end], row[start + 1 : end + 1]
        losses = cross_entropy(scored.float(), following, reduction="none")
        total += float(losses.double().sum())
    return total
