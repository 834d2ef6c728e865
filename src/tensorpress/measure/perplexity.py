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
"""The usual number of tokens in a window."""

CHUNK = 512
"""Number of positions whose log-probabilities are computed at once."""


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
        Number of predicted tokens: in every window, all but the first.
    windows, window : int
        Number of windows, and of tokens in each.
    token_hash : str
        Hash of the tokens in all windows; results with the same hash can be compared.
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
    """Measure the perplexity of a causal language model on a text by the usual protocol.

    The tokens of the whole text are cut into windows that do not overlap; an incomplete last window
    is dropped. In each window the model predicts all tokens but the first from the previous ones.

    Parameters
    ----------
    model : nn.Module
        A Transformers model, or any model that returns scores of shape (1, positions, vocabulary)
        or an output with ``logits``. It runs in eval mode on its device, in its dtype.
    tokens : Tensor
        The text as integers of shape (length,), tokenized as a whole without special tokens.
    window : int, optional
        Number of tokens per window; by default 2,048, or less if the model or text is shorter.
    windows : int, optional
        Number of windows, from the start of the text; by default all.

    Raises
    ------
    InvalidArgumentError
        If the tokens are not a sequence, are fewer than a window or not in the model's vocabulary,
        or a window is longer than the model's context.
    ModelMismatchError
        If the model does not return a score for every token.

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
            f"a text must have two or more integers, got {tuple(tokens.shape)} {tokens.dtype}"
        )
    _check_vocabulary(model, tokens)
    context = longest_context(model)
    size = min(WINDOW, context, len(tokens)) if window is None else window
    if size > context:
        raise InvalidArgumentError(
            f"a window of {size} tokens is too long: the longest context of the model is {context}"
        )
    if not 2 <= size <= len(tokens):
        raise InvalidArgumentError(
            f"a window must have from 2 to {len(tokens)} tokens, the length of the text, got {size}"
        )
    count = len(tokens) // size
    if windows is not None:
        if not 1 <= windows <= count:
            raise InvalidArgumentError(
                f"windows must be from 1 to {count} for this text, got {windows}"
            )
        count = windows
    return tokens[: count * size].reshape(count, size).cpu().to(torch.int64)


def _check_vocabulary(model: nn.Module, tokens: Tensor) -> None:
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    first, last = int(tokens.min()), int(tokens.max())
    if isinstance(size, int) and not 0 <= first <= last < size:
        raise InvalidArgumentError(
            f"the text has the token {last if last >= size else first}, but the model's vocabulary "
            f"is 0 to {size - 1}: the text was tokenized for another model"
        )


def is_language_model(model: object) -> bool:
    """Return whether a Transformers model predicts the next token of a text."""
    kinds = getattr(getattr(model, "config", None), "architectures", None) or [type(model).__name__]
    return any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds)


def longest_context(model: nn.Module) -> int:
    """Return the largest number of positions in a model's config, or no limit if it has none."""
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
            f"expected scores (1, {len(row)}, vocabulary), one per token, got {tuple(scores.shape)}"
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
