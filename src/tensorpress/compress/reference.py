"""The dense model's outputs, and their comparison with other models' outputs."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.outputs import Deviation, named_outputs, token_mask
from tensorpress.compress.class_scores import class_labels, find_scores
from tensorpress.compress.verdict import Fidelity
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode

Outputs = Mapping[str, Tensor]


class Reference:
    """The outputs of the dense model, to compare other models with.

    Parameters
    ----------
    dense : nn.Module
        The dense model, which is run once.
    batches : sequence of Batch
        The inputs on which models are compared.
    others : sequence of Batch
        More inputs for measuring how much outputs vary.
    """

    def __init__(
        self, dense: nn.Module, batches: Sequence[Batch], others: Sequence[Batch] = ()
    ) -> None:
        self.batches = batches
        with evaluation_mode(dense), torch.no_grad():
            self._outputs = [named_outputs(dense, batch) for batch in batches]
            for number, outputs in enumerate(self._outputs):
                undefined = [name for name, x in outputs.items() if bool(x.isnan().any())]
                if undefined:
                    raise InvalidArgumentError(
                        f"the dense model returns NaN for batch {number}: in {undefined[0]}"
                    )
            deviations: dict[str, _Scale] = {}
            for outputs, batch in zip(self._outputs, batches, strict=True):
                _add_outputs(deviations, outputs, batch)
            self.kind = find_scores(self._outputs, batches)
            for batch in () if self.tokens else others:  # few examples have enough tokens
                _add_outputs(deviations, named_outputs(dense, batch), batch)
        self._examples = sum(map(len, batches))
        self._energies = {name: scale.energy for name, scale in deviations.items()}

    @property
    def tokens(self) -> bool:
        """Whether the outputs are logits of tokens."""
        return self.kind is not None and self.kind.tokens

    @property
    def has_logits(self) -> bool:
        """Whether the outputs are logits of classes."""
        return self.kind is not None and self.kind.logits

    def split(self, count: int) -> tuple["Reference", "Reference"]:
        """Split into the first batches and the others; both use the scale of all outputs."""
        parts = copy.copy(self), copy.copy(self)
        for part, places in zip(parts, (slice(count), slice(count, None)), strict=True):
            part.batches, part._outputs = self.batches[places], self._outputs[places]
            part._examples = sum(map(len, part.batches))
        return parts

    def compare(self, model: nn.Module) -> Fidelity:
        """Return the fidelity of a model's outputs.

        Raises
        ------
        InvalidArgumentError
            If the outputs have other names or shapes.
        """
        distances = {name: _Distance() for name in self._outputs[0]}
        scores = _Scores()
        with evaluation_mode(model), torch.no_grad():
            for expected, batch in self._pairs():
                outputs = named_outputs(model, batch)
                _check_shapes(expected, outputs)
                for name, x in expected.items():
                    distances.setdefault(name, _Distance()).add(x, outputs[name], batch)
                if self.kind is not None:
                    name = self.kind.name
                    scores.add(expected[name], outputs[name], batch, self.kind.logits)
        return self._fidelity(distances, scores)

    def _fidelity(self, distances: Mapping[str, "_Distance"], scores: "_Scores") -> Fidelity:
        errors = {name: sums.error(self._energies[name]) for name, sums in distances.items()}
        labelled = scores.labelled > 0
        return Fidelity(
            self._examples,
            max(errors.values()),
            min(sums.cosine / sums.rows for sums in distances.values()),
            self.tokens,
            scores.same / max(scores.rows, 1) if self.kind is not None else None,
            max(scores.divergence / max(scores.rows, 1), 0.0) if self.has_logits else None,
            scores.loss / scores.labelled if labelled else None,
            scores.dense_loss / scores.labelled if labelled else None,
            errors,
        )

    def _pairs(self) -> Iterable[tuple[Outputs, Batch]]:
        return zip(self._outputs, self.batches, strict=True)


class _Scale:
    """The mean of (y − ȳ)² over the values of an output."""

    def __init__(self) -> None:
        self._deviation, self._values = Deviation(), 0

    def add(self, y: Tensor, batch: Batch) -> None:
        mask = token_mask(y, batch)
        self._deviation.add(y, mask)
        self._values += y.numel() if mask is None else y[mask].numel()

    @property
    def energy(self) -> float:
        return self._deviation.energy / max(self._values, 1)


def _add_outputs(scales: dict[str, _Scale], outputs: Outputs, batch: Batch) -> None:
    for name, y in outputs.items():
        scales.setdefault(name, _Scale()).add(y, batch)


@dataclass
class _Distance:
    """Sums over batches for one output."""

    squares: float = 0.0
    values: int = 0
    cosine: float = 0.0
    rows: int = 0

    def add(self, expected: Tensor, output: Tensor, batch: Batch) -> None:
        """Add a batch; equal values, also infinite ones, differ by zero."""
        mask = token_mask(expected, batch)
        x, y = expected.double(), output.double()
        same = x == y
        if mask is not None:
            padding = ~mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)).expand_as(x)
            same = same | padding
            x, y = x.masked_fill(padding, 0), y.masked_fill(padding, 0)
        self.squares += float(torch.where(same, 0, y - x).square().sum())
        self.values += x.numel() if mask is None else expected[mask].numel()
        x, y = (torch.where(same & ~x.isfinite(), 0, t) for t in (x, y))
        rows = len(batch) if x.ndim and len(x) == len(batch) else 1
        cosines = functional.cosine_similarity(x.reshape(rows, -1), y.reshape(rows, -1), dim=1)
        equal = same.reshape(rows, -1).all(dim=1)
        self.cosine += float(torch.where(equal, 1.0, cosines).sum())
        self.rows += rows

    def error(self, energy: float) -> float:
        """Return the root mean square difference, relative to that of the deviation."""
        if not math.isfinite(self.squares):
            return math.inf
        difference = self.squares / max(self.values, 1)
        return math.sqrt(difference / energy) if energy else math.sqrt(difference)


@dataclass
class _Scores:
    """Sums over rows of class scores."""

    rows: int = 0
    same: int = 0
    divergence: float = 0.0
    labelled: int = 0
    loss: float = 0.0
    dense_loss: float = 0.0

    def add(self, expected: Tensor, output: Tensor, batch: Batch, logits: bool) -> None:
        """Add a batch of scores (…, classes)."""
        x, y = expected.flatten(0, -2), output.flatten(0, -2)
        labels = class_labels(expected, batch)
        labels = None if labels is None else labels.flatten()
        mask = token_mask(expected, batch) if expected.ndim == 3 else None
        if mask is not None:
            x, y = x[mask.flatten()], y[mask.flatten()]
            labels = None if labels is None else labels[mask.flatten()]
        self.rows += len(x)
        self.same += int((x.argmax(1) == y.argmax(1)).sum())
        if not logits:
            return
        p, q = (part.double().log_softmax(1) for part in (x, y))
        # KL(p ‖ q) = Σ p (log p − log q), 0 where p = 0
        terms = torch.where(p == -math.inf, 0, p.exp() * (p - q))
        self.divergence += float(terms.sum())
        if labels is None:
            return
        used = labels >= 0
        at = labels[used][:, None]
        self.labelled += int(used.sum())
        self.dense_loss -= float(p[used].gather(1, at).sum())
        self.loss -= float(q[used].gather(1, at).sum())


def _check_shapes(expected: Outputs, outputs: Outputs) -> None:
    shapes = [
        {name: tuple(y.shape) for name, y in tensors.items()} for tensors in (expected, outputs)
    ]
    if shapes[0] != shapes[1]:
        raise InvalidArgumentError(
            f"the models cannot be compared: one returns {shapes[0]}, the other {shapes[1]}"
        )
