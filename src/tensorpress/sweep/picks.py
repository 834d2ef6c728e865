"""What the variants of a sweep came to, which of them are on the frontier, and which are picked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from tensorpress.errors import InvalidArgumentError
from tensorpress.sweep.variants import Variant


@dataclass(frozen=True)
class Trial:
    """One run of a variant: bytes of its file, and the file's error on the validation images.

    Both are None where training diverged.
    """

    seed: int
    folder: str
    bytes: int | None
    error: float | None


@dataclass(frozen=True)
class Outcome:
    """What the runs of a variant came to."""

    variant: Variant
    trials: Sequence[Trial]

    @property
    def complete(self) -> bool:
        """Whether no run diverged: others are not compared."""
        return all(trial.bytes is not None for trial in self.trials)

    @property
    def bytes(self) -> int:
        """Bytes of the largest file."""
        return max(trial.bytes or 0 for trial in self.trials)

    @property
    def error(self) -> float:
        """Mean error on the validation images, in per cent."""
        return mean(trial.error for trial in self.trials if trial.error is not None)


def frontier(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes that no other beats, smallest files first.

    One beats another if it has fewer bytes and no more error, or less error and no more bytes.
    """
    complete = [outcome for outcome in outcomes if outcome.complete]
    best = [one for one in complete if not any(_beats(other, one) for other in complete)]
    return sorted(best, key=lambda one: (one.bytes, one.error))


def _beats(a: Outcome, b: Outcome) -> bool:
    numbers = (a.bytes, a.error), (b.bytes, b.error)
    return a.bytes <= b.bytes and a.error <= b.error and numbers[0] != numbers[1]


@dataclass(frozen=True)
class Pick:
    """A rule that picks a variant: a limit for one of bytes and error, and the best of the other.

    Examples
    --------
    >>> Pick.parse("bytes <= 1200")
    Pick(limited='bytes', limit=1200.0)
    >>> str(Pick.parse("error<=0.95"))
    'error<=0.95'
    """

    limited: Literal["bytes", "error"]
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Pick":
        """Return what a text such as ``bytes<=1200`` or ``error<=0.95`` (per cent) means.

        Raises
        ------
        InvalidArgumentError
            For any other text.
        """
        found = re.fullmatch(r"\s*(bytes|error)\s*<=\s*(\d+(?:\.\d*)?|\.\d+)\s*", text)
        if found is None:
            raise InvalidArgumentError(
                f"a pick is bytes<=NUMBER or error<=NUMBER (in per cent), got {text!r}"
            )
        return cls("bytes" if found[1] == "bytes" else "error", float(found[2]))

    def __str__(self) -> str:
        return f"{self.limited}<={self.limit:g}"

    def choose(self, outcomes: Sequence[Outcome]) -> Outcome | None:
        """Return the least error within so many bytes, or the fewest bytes within such an error.

        Among equals it is the one with less of what is limited; None where nothing is within.
        """
        if self.limited == "bytes":
            within = [one for one in frontier(outcomes) if one.bytes <= self.limit]
            return within[-1] if within else None
        return next((one for one in frontier(outcomes) if one.error <= self.limit), None)
