"""Finds scores of classes among a model's outputs, and the rows of them that count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.outputs import LOGITS, token_mask

_IGNORED = -100
"""The label of rows that do not count, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True)
class ScoreKind:
    """The output of a model with scores of classes.

    Attributes
    ----------
    name : str
        The name of the output.
    logits : bool
        Whether the scores are known to be logits, by their name or by labels, so that probabilities
        of two models can be compared.
    tokens : bool
        Whether they are scores of tokens, (examples, tokens, classes).
    """

    name: str
    logits: bool
    tokens: bool


def find_scores(
    outputs: Sequence[Mapping[str, Tensor]], batches: Sequence[Batch]
) -> ScoreKind | None:
    """Return the output with scores of classes on its last axis, or None.

    It is ``logits`` of two or three axes, or a single output with integers of its leading axes as
    labels, or a single output (examples, classes) that does not look like something else.

    Parameters
    ----------
    outputs : sequence of mapping
        The dense model's outputs by name, for every batch.
    batches : sequence of Batch
        The batches.
    """
    name = LOGITS if LOGITS in outputs[0] else next(iter(outputs[0]))
    if any(name not in tensors or (name != LOGITS and len(tensors) > 1) for tensors in outputs):
        return None
    scores = [tensors[name] for tensors in outputs]
    axes = {x.ndim for x in scores}
    if axes not in ({2}, {3}) or len({x.shape[-1] for x in scores}) > 1 or scores[0].shape[-1] < 2:
        return None
    pairs = list(zip(scores, batches, strict=True))
    labelled = all(class_labels(x, batch) is not None for x, batch in pairs)
    known = labelled or name == LOGITS
    if not known and (axes == {3} or any(_are_no_scores(x, batch) for x, batch in pairs)):
        return None
    probabilities = all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in scores)
    logits = known and not probabilities
    return ScoreKind(name, logits, logits and axes == {3})


def class_labels(scores: Tensor, batch: Batch) -> Tensor | None:
    """Return the class of every row of scores, −100 where it does not count, or None.

    If the labels of a language model are its inputs, they are shifted to the next token.
    """
    labels = batch.labels
    if labels is None or labels.is_floating_point() or labels.is_complex():
        return None
    if labels.shape != scores.shape[:-1]:
        return None
    labels = labels.long()
    used = (labels >= 0) & (labels < scores.shape[-1])
    mask = token_mask(scores, batch)
    if mask is not None:
        used = used & mask
    result = torch.where(used, labels, _IGNORED)
    if scores.ndim == 3 and any(_are_inputs(labels, used, x) for x in batch.arguments.tensors):
        result = torch.cat([result[:, 1:], torch.full_like(result[:, :1], _IGNORED)], 1)
    return result


def _are_inputs(labels: Tensor, used: Tensor, x: Tensor) -> bool:
    return (
        x.shape == labels.shape
        and not x.is_floating_point()
        and x.dtype != torch.bool
        and torch.equal(x[used].long(), labels[used])
        and bool(used.any())
    )


def _are_no_scores(rows: Tensor, batch: Batch) -> bool:
    """Tell whether rows are embeddings, separate probabilities, or outputs of a regression."""
    labels = batch.labels
    if labels is not None and labels.is_floating_point() and labels.shape == rows.shape:
        return True
    if torch.allclose(rows.norm(dim=1), rows.new_ones(()), atol=1e-3):
        return True
    probabilities = float(rows.min()) >= 0 and float(rows.max()) <= 1
    return probabilities and not torch.allclose(rows.sum(1), rows.new_ones(()), atol=1e-3)
