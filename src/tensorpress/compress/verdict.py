"""The verdict on a compressed model: the distance of its outputs, and whether it is usable."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LEAST = 4
"""Fewest examples on which a model is judged."""

_LEVELS = (
    "nearly the same",
    "close",
    "far: fine-tune before use",
    "not usable without fine-tuning",
)
CLOSE, FAR = 0.30, 0.60
"""Largest errors of outputs that are close, and that fine-tuning can repair."""

_ERRORS = (0.10, CLOSE, FAR)
_AGREEMENTS = (0.98, 0.93, 0.80)
_DIVERGENCES = (0.02, 0.10, 0.50)
"""Bounds of all levels but the last: largest errors, least agreements, and for tokens divergences.

A divergence of 0.1 nats raises the perplexity of a language model by about 10 %.
"""


@dataclass(frozen=True)
class Fidelity:
    """The distance of a model's outputs from the dense model's, on held-out inputs.

    Attributes
    ----------
    examples : int
        Number of examples.
    error : float
        Relative error ‖ŷ − y‖ / ‖y − ȳ‖ with the mean ȳ over examples: 0 for equal outputs, 1 for
        outputs as far off as a constant. For several outputs it is the largest.
    cosine : float
        Mean cosine between the outputs of an example; for several outputs the smallest.
    tokens : bool
        Whether outputs are logits of tokens, (examples, tokens, vocabulary): they are called
        ``logits``, or have integers (examples, tokens) as labels.
    agreement : float or None
        Share of rows with the same largest output, if outputs are scores of classes. Rows of norm 1
        (embeddings) and probabilities that do not add up to 1 are not taken for scores, unless
        labels are classes.
    divergence : float or None
        Mean Kullback–Leibler divergence of class probabilities in nats, if outputs are known to be
        logits by labels or by their name.
    loss, dense_loss : float or None
        Mean cross entropy of both models in nats, if labels are classes; other labels do not count.
        For a language model its exponential is the perplexity, and labels that equal the inputs are
        shifted to the next token.
    errors : mapping of str to float
        The error of every output by name.
    """

    examples: int
    error: float
    cosine: float
    tokens: bool = False
    agreement: float | None = None
    divergence: float | None = None
    loss: float | None = None
    dense_loss: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def distance(self) -> float:
        """The number to minimize: the divergence of logits, else the error."""
        return self.order[0]

    @property
    def order(self) -> tuple[float, float]:
        """The key by which models are ordered: the `distance`, then the error."""
        value = self.error if self.divergence is None else self.divergence
        return (value if math.isfinite(value) else math.inf), self.error

    def __str__(self) -> str:
        """Return the verdict."""
        return self.verdict

    @property
    def verdict(self) -> str:
        """The meaning of the numbers in a few words."""
        error = f"outputs differ by {100 * self.error:.1f} %"
        if len(self.errors) > 1:
            worst = max(self.errors, key=lambda name: self.errors[name])
            error += f" (the worst of {len(self.errors)}, {worst!r})"
        if not self.enough:
            return (
                f"{self.examples} examples are too few to judge, at least {LEAST} are needed; on "
                f"them {error}"
            )
        level = _LEVELS[self._level]
        if self.tokens and self.loss is not None and self.dense_loss is not None:
            before, after = (math.exp(min(x, 700)) for x in (self.dense_loss, self.loss))
            return f"perplexity {after:.4g} for {before:.4g}, {error}: {level}"
        if self.tokens and self.divergence is not None:
            return (
                f"probabilities of tokens diverge by {self.divergence:.2g} nats, {error}: {level}"
            )
        if self.agreement is not None:
            return f"{100 * self.agreement:.1f} % of the predictions agree, {error}: {level}"
        return f"{error}: {level}"

    @property
    def enough(self) -> bool:
        """Whether there are enough examples to judge."""
        return self.examples >= LEAST

    @property
    def nearly_same(self) -> bool:
        """Whether the outputs are so close that hardly anything can be gained."""
        return self.enough and self._level == 0

    @property
    def usable(self) -> bool:
        """Whether the outputs are close enough for use without fine-tuning."""
        return self.enough and self._level <= 1

    @property
    def _level(self) -> int:
        # The error always counts, because constant predictions agree whatever a model does.
        level = sum(not self.error <= most for most in _ERRORS)
        if self.tokens and self.divergence is not None:
            return max(level, sum(not self.divergence <= most for most in _DIVERGENCES))
        if self.agreement is not None:
            level = max(level, sum(self.agreement < least for least in _AGREEMENTS))
        return level

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and the verdict as plain data for JSON, with None for infinity."""
        numbers = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
            if name != "errors"
        }
        errors = {n: error if math.isfinite(error) else None for n, error in self.errors.items()}
        return {**numbers, "errors": errors, "verdict": self.verdict}
