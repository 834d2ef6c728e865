"""What each choice for a layer costs the model in quality: plain data that a plan can follow."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tensorpress.errors import CorruptFileError, DataNotFoundError, unknown_name
from tensorpress.utils.atomic_files import write_atomically

Rule = Literal["total", "worst"]


@dataclass(frozen=True)
class Scored:
    """One choice for a layer, and what the model loses by it.

    Attributes
    ----------
    scheme : str
        By name.
    ranks : tuple of int
        In the order of the scheme's paper.
    score : float
        What the model loses, in the unit of the metric: what a plan adds up. Below 0 counts as 0.
    measured : bool
        Whether the model was run; otherwise ``score`` is an estimate.
    increase : float or None
        By how much the metric of the whole model grew when this layer alone was pressed so. The
        score may be larger: a few examples show by chance that nothing is lost.
    """

    scheme: str
    ranks: tuple[int, ...]
    score: float
    measured: bool
    increase: float | None = None


@dataclass(frozen=True)
class Scores:
    """The choices for every layer of a model, with their scores: from `tensorpress.sensitivity`.

    Give them to `tensorpress.plan` as the ``allocation`` of a budget.

    Attributes
    ----------
    metric : str
        What was measured; the lower, the better.
    dense : float
        Its value for the dense model.
    layers : mapping of str to tuple of Scored
        By name of the layer, the choices with few parameters first.
    rule : {"total", "worst"}
        What a plan makes small: the sum of the scores, or the largest of them (the greedy selection
        of AIMET); `dataclasses.replace` changes it.

    Examples
    --------
    >>> scores = Scores("loss", 0.5, {"fc": (Scored("channel_svd", (4,), 0.02, True),)})
    >>> Scores.from_dict(scores.to_dict()) == scores
    True
    """

    metric: str
    dense: float
    layers: Mapping[str, tuple[Scored, ...]]
    rule: Rule = "total"

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise unknown_name("rule", self.rule, get_args(Rule))

    def choices(self, layer: str) -> tuple[Scored, ...]:
        """Return the choices for a layer, none for one that was not scored."""
        return self.layers.get(layer, ())

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as plain data for JSON."""
        return {
            "metric": self.metric,
            "dense": self.dense,
            "rule": self.rule,
            "layers": {
                name: [asdict(choice) | {"ranks": list(choice.ranks)} for choice in choices]
                for name, choices in self.layers.items()
            },
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "Scores":
        """Return the scores of `to_dict`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If the content is something else.
        """
        layers = {
            str(name): tuple(
                Scored(
                    str(choice["scheme"]),
                    tuple(int(rank) for rank in choice["ranks"]),
                    float(choice["score"]),
                    bool(choice["measured"]),
                    None if choice["increase"] is None else float(choice["increase"]),
                )
                for choice in choices
            )
            for name, choices in content["layers"].items()
        }
        return Scores(str(content["metric"]), float(content["dense"]), layers, content["rule"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores to a JSON file, complete or not at all.

        Raises
        ------
        InvalidArgumentError
            If it cannot be written.
        """
        write_atomically(path, json.dumps(self.to_dict(), indent=1).encode())

    @staticmethod
    def read(path: str | os.PathLike[str]) -> "Scores":
        """Return the scores of a file that `save` wrote.

        Raises
        ------
        DataNotFoundError
            If there is no such file.
        CorruptFileError
            If it holds something else.
        """
        try:
            return Scores.from_dict(json.loads(Path(path).read_bytes()))
        except FileNotFoundError:
            raise DataNotFoundError(f"no scores at {path}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFileError(f"{path} does not hold scores: {error}") from error
