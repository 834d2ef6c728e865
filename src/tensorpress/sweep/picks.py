"""Results of a sweep's variants, their frontier, and rules that pick variants."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from tensorpress.errors import InvalidArgumentError
from tensorpress.sweep.variants import Variant


@dataclass(frozen=True)
class Trial:
    """One run of a variant: the bytes of its file, and the file's error on the validation images.

    Both are None if training diverged.
    """

    seed: int
    folder: str
    bytes: int | None
    error: float | None


@dataclass(frozen=True)
class Outcome:
    """The results of all runs of a variant."""

    variant: Variant
    trials: Sequence[Trial]

    @property
    def complete(self) -> bool:
        """Whether all runs converged; only complete variants are compared."""
        return all(trial.bytes is not None for trial in self.trials)

    @property
    def bytes(self) -> int:
        """Size of the largest file."""
        return max(trial.bytes or 0 for trial in self.trials)

    @property
    def error(self) -> float:
        """Mean error on the validation images in percent."""
        return mean(trial.error for trial in self.trials if trial.error is not None)


def frontier(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes that no other outcome dominates, smallest file first.

    An outcome dominates another if it has fewer bytes and at most the same error, or a lower error
    and at most the same bytes.
    """
    complete = [outcome for outcome in outcomes if outcome.complete]
    optimal = [one for one in complete if not any(_dominates(other, one) for other in complete)]
    return sorted(optimal, key=lambda one: (one.bytes, one.error))


def _dominates(a: Outcome, b: Outcome) -> bool:
    numbers = (a.bytes, a.error), (b.bytes, b.error)
    return a.bytes <= b.bytes and a.error <= b.error and numbers[0] != numbers[1]


@dataclass(frozen=True)
class Pick:
    """A rule that picks a variant: a limit on bytes or error, and the minimum of the other.

    Examples
    --------
    >>> Pick.parse("bytes <= 1200")
    Pick(quantity='bytes', limit=1200.0)
    >>> str(Pick.parse("error<=0.95"))
    'error<=0.95'
    """

    quantity: Literal["bytes", "error"]
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Pick":
        """Parse a rule such as ``bytes<=1200`` or ``error<=0.95`` (percent).

        Raises
        ------
        InvalidArgumentError
            If the text is not such a rule.
        """
        match = re.fullmatch(r"\s*(bytes|error)\s*<=\s*(\d+(?:\.\d*)?|\.\d+)\s*", text)
        if match is None:
            raise InvalidArgumentError(
                f"a pick must be bytes<=NUMBER or error<=NUMBER (in percent), got {text!r}"
            )
        return cls("bytes" if match[1] == "bytes" else "error", float(match[2]))

    def __str__(self) -> str:
        return f"{self.quantity}<={self.limit:g}"

    def choose(self, outcomes: Sequence[Outcome]) -> Outcome | None:
        """Return the outcome within the limit with the lowest error or the fewest bytes, or None.

        Among equals it is the one with less of the limited quantity.
        """
        if self.quantity == "bytes":
            matching = [one for one in frontier(outcomes) if one.bytes <= self.limit]
            return matching[-1] if matching else None
        return next((one for one in frontier(outcomes) if one.error <= self.limit), None)
