"""Scores: the loss of the model for each choice of a layer."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from tensorpress.errors import CorruptFileError, unknown_name
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.config_parsing import parse_json
from tensorpress.utils.paths import read_file

Rule = Literal["total", "worst"]


@dataclass(frozen=True)
class Scored:
    """One choice for a layer with its score.

    Attributes
    ----------
    scheme : str
        The name of the scheme.
    ranks : tuple of int
        The ranks, in the order of the scheme's paper.
    score : float
        The loss of the model for this choice, in the unit of the metric; below 0 counts as 0.
    measured : bool
        Whether the loss was measured; otherwise ``score`` is an estimate.
    increase : float or None
        The measured increase of the metric when only this layer is pressed. The score is larger if
        the increase could be small by chance, on few examples.
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
        The name of the metric; lower is better.
    dense : float
        The metric of the dense model.
    layers : mapping of str to tuple of Scored
        The choices for each layer by name, fewest parameters first.
    rule : {"total", "worst"}
        A plan minimizes the sum of the scores, or the largest of them (the greedy selection of
        AIMET); `dataclasses.replace` changes it.

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
        """Return the choices for a layer; a layer that was not scored has none."""
        return self.layers.get(layer, ())

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as plain data for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "Scores":
        """Return the scores of the data of `to_dict`.

        Raises
        ------
        ValueError
            If the content is not scores.
        """
        return TypeAdapter(Scores).validate_python(content)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores to a JSON file."""
        write_atomically(path, json.dumps(self.to_dict(), indent=1).encode())

    @staticmethod
    def read(path: str | os.PathLike[str]) -> "Scores":
        """Return the scores of a file that `save` wrote.

        Raises
        ------
        DataNotFoundError
            If the file does not exist.
        CorruptFileError
            If the file is not scores.
        """
        content = read_file(path, "scores file")
        try:
            return Scores.from_dict(parse_json(content))
        except ValueError as error:
            raise CorruptFileError(f"{path} is not a file of scores: {error}") from error
