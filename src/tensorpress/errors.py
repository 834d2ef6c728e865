"""The errors that users can cause; the command line prints them without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class TensorPressError(Exception):
    """Base class of all errors that TensorPress raises on purpose."""


class InvalidArgumentError(TensorPressError, ValueError):
    """A value, name, shape or rank is invalid."""


class BudgetMetError(InvalidArgumentError):
    """The dense model already meets the budget: there is nothing to press."""


class ModelRunError(InvalidArgumentError):
    """A model fails on its inputs; its error is the cause of this one."""


class DataNotFoundError(TensorPressError, FileNotFoundError):
    """A dataset, model or file does not exist."""


class CorruptFileError(TensorPressError, ValueError):
    """A file is truncated, altered, or not in the expected format."""


class ModelMismatchError(TensorPressError, ValueError):
    """A model does not fit a file, weights or a plan."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InvalidArgumentError:
    """Return the error for an unknown name, which suggests similar ones.

    Examples
    --------
    >>> str(unknown_name("dataset", "minst", ["cifar10", "mnist"]))
    "unknown dataset 'minst': did you mean 'mnist'? (known: cifar10, mnist)"
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return InvalidArgumentError(f"unknown {kind} {name!r}: {hint}(known: {', '.join(names)})")


def first_line(error: BaseException) -> str:
    r"""Return the first bullet of an error's message, or else its first line.

    Examples
    --------
    >>> first_line(ValueError("Two faults:\n- no weight\n- no bias")), first_line(KeyError())
    ('no weight', 'KeyError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    points = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return (points or lines or [type(error).__name__])[0]


class DivergedError(TensorPressError, ArithmeticError):
    """The loss of a training run is NaN or infinite."""
