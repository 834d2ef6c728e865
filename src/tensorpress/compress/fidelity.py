"""Fidelity: how far the outputs of a compressed model are from those of the dense model."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.calibrate.batches import MASK, Batch, CalibrationBatch, collect_batches
from tensorpress.calibrate.outputs import output_tensors
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode

_LEVELS = (
    "nearly the same",
    "close",
    "far: fine-tune before use",
    "not usable without fine-tuning",
)
_ERRORS = (0.10, 0.30, 0.60)
_AGREEMENTS = (0.98, 0.93, 0.80)
_DIVERGENCES = (0.02, 0.10, 0.50)
"""Largest errors, least agreements, and for tokens largest divergences of all levels but the last.

A divergence of 0.1 nats makes the perplexity of a language model about 10 % larger.
"""


@dataclass(frozen=True)
class Fidelity:
    r"""How far outputs are from those of the dense model, on inputs that nothing was fitted to.

    Attributes
    ----------
    examples : int
        Number of examples.
    error : float
        Root mean square of the difference, relative to that of the dense outputs about their mean
        over the examples, :math:`‖\hat y - y‖ / ‖y - \bar y‖`: at 0 they are the same, at 1 the
        outputs are as far off as a constant.
    cosine : float
        Mean cosine of the angle between the outputs of an example.
    tokens : bool
        Whether outputs are logits of tokens, (examples, tokens, vocabulary).
    agreement : float or None
        Share of the rows whose largest output is at the same place, where outputs are scores of
        classes. Rows of length 1 are embeddings, and probabilities that do not add up to 1 are of
        one question each, unless labels say that they are of classes.
    divergence : float or None
        Mean Kullback–Leibler divergence of the classes' probabilities, in nats, where outputs are
        logits.
    loss, dense_loss : float or None
        Mean cross entropy of both models, in nats, where batches have classes as labels. Of a
        language model, its exponential is the perplexity.
    """

    examples: int
    error: float
    cosine: float
    tokens: bool = False
    agreement: float | None = None
    divergence: float | None = None
    loss: float | None = None
    dense_loss: float | None = None

    @property
    def distance(self) -> float:
        """The one number that is made small: the divergence of logits, else the error."""
        value = self.error if self.divergence is None else self.divergence
        return value if math.isfinite(value) else math.inf

    @property
    def verdict(self) -> str:
        """What the numbers mean, in a few words."""
        level = _LEVELS[self._level]
        error = f"outputs differ by {100 * self.error:.1f} %"
        if self.tokens and self.loss is not None and self.dense_loss is not None:
            before, after = math.exp(self.dense_loss), math.exp(min(self.loss, 700))
            return f"perplexity {after:.4g} for {before:.4g}, {error}: {level}"
        if self.agreement is not None:
            return f"{100 * self.agreement:.1f} % of the predictions agree, {error}: {level}"
        return f"{error}: {level}"

    @property
    def nearly_same(self) -> bool:
        """Whether the outputs are so close that there is next to nothing to gain."""
        return self._level == 0

    @property
    def usable(self) -> bool:
        """Whether the outputs are close enough for use without fine-tuning."""
        return self._level <= 1

    @property
    def _level(self) -> int:
        if self.tokens and self.divergence is not None:
            return sum(not self.divergence <= most for most in _DIVERGENCES)
        by_error = sum(not self.error <= most for most in _ERRORS)
        if self.agreement is None:
            return by_error
        # Predictions that are all the same agree whatever a model does: both have to be good.
        return max(by_error, sum(self.agreement < least for least in _AGREEMENTS))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and the verdict as plain data for JSON."""
        return {**asdict(self), "verdict": self.verdict}


def fidelity(
    dense: nn.Module, compressed: nn.Module, batches: Iterable[CalibrationBatch]
) -> Fidelity:
    """Measure how far the outputs of a model are from those of the dense model.

    Parameters
    ----------
    dense, compressed : nn.Module
        The models; they are run in eval mode.
    batches : iterable
        Inputs, or pairs of inputs and labels, as for `tensorpress.press`; best such that nothing
        was fitted to.

    Raises
    ------
    InvalidArgumentError
        If there are no batches, or the models return no floating-point tensors, or not the same.

    Examples
    --------
    >>> net = nn.Linear(4, 3)
    >>> fidelity(net, net, [torch.randn(8, 4)]).error
    0.0
    """
    return Reference(dense, collect_batches(batches, dense)).compare(compressed)


class Reference:
    """Outputs of the dense model, which others are compared with.

    Parameters
    ----------
    dense : nn.Module
        The dense model, run once.
    batches : sequence of Batch
        Inputs.
    """

    def __init__(self, dense: nn.Module, batches: Sequence[Batch]) -> None:
        self.batches = batches
        with evaluation_mode(dense), torch.no_grad():
            self._outputs = [output_tensors(dense, batch) for batch in batches]
        self._classes = all(_are_scores(outputs, batch) for outputs, batch in self._pairs())
        self.has_logits = self._classes and any(
            float(outputs[0].min()) < 0 or float(outputs[0].max()) > 1 for outputs in self._outputs
        )
        self.tokens = self.has_logits and self._outputs[0][0].ndim == 3
        self._energy = self._deviation()

    def compare(self, model: nn.Module) -> Fidelity:
        """Return the fidelity of a model's outputs."""
        sums = _Sums()
        with evaluation_mode(model), torch.no_grad():
            for expected, batch in self._pairs():
                outputs = output_tensors(model, batch)
                _check_shapes(expected, outputs)
                sums.add_distance(expected, outputs, len(batch))
                if self._classes:
                    sums.add_classes(expected[0], outputs[0], batch, self.has_logits)
        return sums.fidelity(self._energy, self._classes, self.has_logits, self.tokens)

    def _pairs(self) -> Iterable[tuple[list[Tensor], Batch]]:
        return zip(self._outputs, self.batches, strict=True)

    def _deviation(self) -> float:
        """Return ‖y − ȳ‖², the mean being over examples and, of sequences, over positions."""
        total = 0.0
        for place in range(len(self._outputs[0])):
            rows = [outputs[place] for outputs in self._outputs]
            parts = [_rows(y).double() for y in rows]
            count = sum(len(part) for part in parts)
            squares = float(sum(part.square().sum() for part in parts))
            if count > 1 and len({part.shape[1] for part in parts}) == 1:
                mean = torch.stack([part.sum(0) for part in parts]).sum(0) / count
                centred = squares - count * float(mean.square().sum())
                # Outputs that do not depend on the input have nothing but their mean.
                squares = centred if centred > 1e-6 * squares else squares
            total += squares
        return total


@dataclass
class _Sums:
    """Sums over batches."""

    squares: float = 0.0
    cosine: float = 0.0
    examples: int = 0
    rows: int = 0
    same: int = 0
    divergence: float = 0.0
    labelled: int = 0
    loss: float = 0.0
    dense_loss: float = 0.0

    def add_distance(self, expected: list[Tensor], outputs: list[Tensor], examples: int) -> None:
        self.examples += examples
        self.squares += sum(
            float((y.double() - x.double()).square().sum())
            for x, y in zip(expected, outputs, strict=True)
        )
        split = examples if all(len(x) == examples for x in expected if x.ndim) else 1
        a, b = (
            torch.cat([x.reshape(split, -1).double() for x in t], 1) for t in (expected, outputs)
        )
        same = (a == b).all(dim=1)
        cosines = functional.cosine_similarity(a, b, dim=1)
        self.cosine += float(torch.where(same, 1.0, cosines).mean()) * examples

    def add_classes(self, expected: Tensor, output: Tensor, batch: Batch, logits: bool) -> None:
        x, y = expected.flatten(0, -2), output.flatten(0, -2)
        mask = _token_mask(expected, batch)
        if mask is not None:
            x, y = x[mask], y[mask]
        self.rows += len(x)
        self.same += int((x.argmax(1) == y.argmax(1)).sum())
        if not logits:
            return
        p, q = (part.float().log_softmax(1) for part in (x, y))
        # KL(p ‖ q) = Σ p (log p − log q)
        self.divergence += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        labels = _class_labels(expected, batch)
        if labels is not None:
            labels = labels if mask is None else labels[mask]
            used = labels >= 0  # −100 marks what a language model is not asked
            at = labels[used][:, None]
            self.labelled += int(used.sum())
            self.dense_loss -= float(p[used].gather(1, at).sum(dtype=torch.float64))
            self.loss -= float(q[used].gather(1, at).sum(dtype=torch.float64))

    def fidelity(self, energy: float, classes: bool, logits: bool, tokens: bool) -> Fidelity:
        error = math.sqrt(self.squares / energy) if energy else math.sqrt(self.squares)
        labelled = self.labelled > 0
        return Fidelity(
            self.examples,
            error if math.isfinite(error) else math.inf,
            self.cosine / self.examples,
            tokens,
            self.same / self.rows if classes else None,
            self.divergence / self.rows if logits else None,
            self.loss / self.labelled if labelled else None,
            self.dense_loss / self.labelled if labelled else None,
        )


def _are_scores(outputs: Sequence[Tensor], batch: Batch) -> bool:
    """Tell whether outputs are scores of classes: (examples, classes), or of tokens."""
    [first, *more] = outputs
    if more or first.ndim not in (2, 3) or first.shape[-1] < 2:
        return False
    if _class_labels(first, batch) is not None:
        return True
    return first.shape[-1] > 1000 if first.ndim == 3 else not _are_separate(first)


def _are_separate(rows: Tensor) -> bool:
    """Tell whether rows are no scores of one choice: of length 1, or probabilities of many."""
    if torch.allclose(rows.norm(dim=1), rows.new_ones(()), atol=1e-3):
        return True  # embeddings
    probabilities = float(rows.min()) >= 0 and float(rows.max()) <= 1
    return probabilities and not torch.allclose(rows.sum(1), rows.new_ones(()), atol=1e-3)


def _class_labels(scores: Tensor, batch: Batch) -> Tensor | None:
    """Return the class of every row of scores, None where the labels are something else."""
    labels = batch.labels
    if labels is None or labels.is_floating_point() or labels.shape != scores.shape[:-1]:
        return None
    flat = labels.flatten()
    return None if int(flat.max()) >= scores.shape[-1] else flat


def _token_mask(scores: Tensor, batch: Batch) -> Tensor | None:
    """Return which rows of scores of tokens are no padding, None where all count."""
    mask = batch.named.get(MASK)
    return None if mask is None or mask.shape != scores.shape[:-1] else mask.bool().flatten()


def _rows(y: Tensor) -> Tensor:
    """Return outputs as rows: of positions where they are a sequence, else of examples."""
    if y.ndim < 2:
        return y.reshape(-1, 1)
    return y.flatten(0, -2) if y.ndim == 3 else y.flatten(1)


def _check_shapes(expected: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (expected, outputs)]
    if shapes[0] != shapes[1]:
        raise InvalidArgumentError(
            f"the models cannot be compared: one returns {shapes[0]}, the other {shapes[1]}"
        )
