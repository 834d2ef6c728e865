"""The examples of a data source: stored contents, labels and class names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.utils.formatting import format_failure

TRAIN = ("train", "training")
TEST = ("test", "testing", "validation", "valid", "val", "eval", "dev")
"""Names of parts; the first that exists is used."""

Example = tuple[Any, int | None]
"""A stored content, such as an image or a text, and its label."""


class Examples(Protocol):
    """Examples by index, such as a map-style `torch.utils.data.Dataset`."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Example:
        """Return one example."""
        ...


@dataclass(frozen=True)
class Batches:
    """Batches of inputs that are passed to a model unchanged.

    Parameters
    ----------
    batches : iterable
        Batches: Tensors, pairs (inputs, labels) or mappings from argument names.
    name : str
        Name of the function that returned them, for messages.
    """

    batches: Iterable[Any]
    name: str = "the data"

    def __iter__(self) -> Iterator[Any]:
        with name_errors(self.name):
            yield from self.batches


Part = Examples | Batches


@dataclass(frozen=True)
class Source:
    """The parts of a data source.

    Parameters
    ----------
    name : str
        The name of the source, for messages.
    test : Examples or Batches
        The part on which errors are measured, or all examples of a source without parts.
    train : Examples or Batches, optional
        The part for training and calibration.
    classes : tuple of str
        Class names, which labels number. Without names, labels are class numbers of the model.

    Examples
    --------
    >>> source = Source("letters", [("a", 0), ("b", 1), ("c", 0), ("d", 1), ("e", 0)])
    >>> [len(part) for part in source.divide()]
    [4, 1]
    """

    name: str
    test: Part
    train: Part | None = None
    classes: tuple[str, ...] = ()

    @staticmethod
    def from_parts(name: str, parts: Mapping[str, Part], classes: tuple[str, ...] = ()) -> Source:
        """Return a source with the parts named `TRAIN` and `TEST`, or with a single part.

        Raises
        ------
        InvalidArgumentError
            If there are several parts with other names.
        """
        train = next((parts[key] for key in TRAIN if key in parts), None)
        test = next((parts[key] for key in TEST if key in parts), None)
        if train is None and test is None and len(parts) == 1:
            [test] = parts.values()
        if test is None:
            test, train = train, None
        if test is None:
            raise InvalidArgumentError(
                f"{name} has the parts {', '.join(parts) or 'none'}: name them train and test"
            )
        return Source(name, test, train, classes)

    def divide(self) -> tuple[Part, Part]:
        """Return a training and a test part; without parts, a fifth of the source is for tests.

        Raises
        ------
        InvalidArgumentError
            If the source has no parts and yields batches, which cannot be divided.
        """
        if self.train is not None:
            return self.train, self.test
        if isinstance(self.test, Batches):
            raise InvalidArgumentError(
                f"{self.name} returns only batches, which cannot be divided: return "
                "{'train': …, 'test': …}"
            )
        order = shuffle(len(self.test))
        count = len(order) // 5
        return Selection(self.test, sorted(order[count:])), Selection(
            self.test, sorted(order[:count])
        )


@dataclass(frozen=True)
class Selection:
    """Some of the examples, by their indices."""

    examples: Examples
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Example:
        return self.examples[self.indices[index]]


@contextmanager
def name_errors(name: str) -> Iterator[None]:
    """Turn any error of user code inside a ``with`` block into one that names the data.

    Raises
    ------
    InvalidArgumentError
        If the block raises any other error; the message has file and line.
    """
    try:
        yield
    except TensorPressError:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidArgumentError(f"{name} fails: {format_failure(error)}") from error


def shuffle(count: int) -> list[int]:
    """Return the numbers below ``count`` in a random order that is always the same."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return order
