"""Cross entropies without labels: at labels that a model draws, or at a text's next tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.outputs import token_mask
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.perplexity import is_language_model


def unlabelled_loss(
    model: object, batch: Batch, outputs: Sequence[Tensor], random: torch.Generator
) -> Tensor:
    """Return the summed cross entropy of a batch whose labels are not used.

    Parameters
    ----------
    model : nn.Module
        The model. Of a causal language model of transformers, the loss is `next_token_loss`; of
        others it is `sampled_loss`.
    batch : Batch
        Its inputs; padding does not count.
    outputs : sequence of Tensor
        The model's outputs for the batch; the first are logits (..., classes).
    random : torch.Generator
        The generator of the labels that are drawn, on the CPU.

    Raises
    ------
    InvalidArgumentError
        If the outputs are not logits, or not finite.
    """
    mask = token_mask(outputs[0], batch)
    tokens = batch.named.get("input_ids", next(iter(batch.inputs), None))
    is_text = isinstance(tokens, Tensor) and tokens.shape == outputs[0].shape[:-1]
    if is_text and is_language_model(model):
        return next_token_loss(outputs[0], tokens, mask)
    return sampled_loss(outputs, random, mask)


def sampled_loss(
    outputs: Sequence[Tensor], random: torch.Generator, mask: Tensor | None = None
) -> Tensor:
    r"""Return the summed cross entropy at labels drawn from the probabilities of a model.

    The second moment of its gradients is the Fisher information, the curvature of the
    Kullback–Leibler divergence from these probabilities.

    Parameters
    ----------
    outputs : sequence of Tensor
        Outputs of the model; the first are logits (..., classes).
    random : torch.Generator
        The generator of the labels, on the CPU.
    mask : Tensor, optional
        Mask of the rows that count, of the leading shape of the logits.

    Raises
    ------
    InvalidArgumentError
        If the outputs are not logits, or not finite.

    Examples
    --------
    >>> logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    >>> sampled_loss([logits], torch.Generator())
    tensor(0.6931)
    """
    if outputs[0].ndim < 2:
        raise InvalidArgumentError(
            "the curvature of the loss needs logits (examples, classes) as first output, not shape "
            f"{tuple(outputs[0].shape)}"
        )
    logits = outputs[0].flatten(0, -2) if mask is None else outputs[0][mask]
    if not bool(logits.detach().isfinite().any(-1).all()) or bool(logits.detach().isnan().any()):
        raise InvalidArgumentError("the model returns logits that are not finite")
    labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=random)[:, 0]
    return functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")


def next_token_loss(logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the summed cross entropy of the next tokens of texts.

    Parameters
    ----------
    logits : Tensor
        Scores (texts, positions, vocabulary).
    tokens : Tensor
        The texts, (texts, positions).
    mask : Tensor, optional
        Mask of the tokens that are not padding, (texts, positions).

    Examples
    --------
    >>> logits = torch.zeros(1, 3, 2)
    >>> next_token_loss(logits, torch.tensor([[0, 1, 1]]))  # 2 ln 2
    tensor(1.3863)
    """
    rows, labels = logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    if mask is not None:
        counted = (mask[:, :-1] & mask[:, 1:]).flatten()
        rows, labels = rows[counted], labels[counted]
    return functional.cross_entropy(rows, labels.to(rows.device), reduction="sum")
