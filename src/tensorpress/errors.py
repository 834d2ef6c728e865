"""The errors a user can cause; the command line prints them without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class TensorPressError(Exception):
    """Base of every error TensorPress raises on purpose."""


class InvalidArgumentError(TensorPressError, ValueError):
    """A value, name, shape or rank that cannot be used."""


class BudgetMetError(InvalidArgumentError):
    """A budget that the dense model meets as it is: there is nothing to press."""


class ModelRunError(InvalidArgumentError):
    """A model that fails on the inputs it was given; its own error is the cause of this one."""


class DataNotFoundError(TensorPressError, FileNotFoundError):
    """A data set or weight file is not where it was looked for."""


class CorruptFileError(TensorPressError, ValueError):
    """A file that is truncated, altered, or not of the format it claims."""


class ModelMismatchError(TensorPressError, ValueError):
    """A model that does not fit the file, the weights or the plan it was given with."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InvalidArgumentError:
    """Return the error for a misspelt name, with the nearest known ones.

    Examples
    --------
    >>> str(unknown_name("data set", "minst", ["cifar10", "mnist"]))
    "unknown data set 'minst': did you mean 'mnist'? (known: cifar10, mnist)"
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return InvalidArgumentError(f"unknown {kind} {name!r}: {hint}(known: {', '.join(names)})")


def first_line(error: BaseException) -> str:
    r"""Return the line of an error's message that says most: its first bullet, or its first line.

    Examples
    --------
    >>> first_line(ValueError("Two faults:\n- no weight\n- no bias")), first_line(KeyError())
    ('no weight', 'KeyError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    points = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return (points or lines or [type(error).__name__])[0]


class DivergedError(TensorPressError, ArithmeticError):
    """A training run whose loss is no longer a finite number."""
