"""Checking plain data against pydantic models, with errors that name the key."""

import reprlib
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from tensorpress.errors import InvalidArgumentError

Model = TypeVar("Model", bound=BaseModel)

SHORT = reprlib.Repr()
"""Writes values into messages."""

SHORT.maxlevel = 2  # a few aliases in YAML can stand for any number of nested lists


def validated(kind: type[Model], content: Any, what: str) -> Model:
    """Return plain data as a pydantic model.

    Parameters
    ----------
    kind : type of BaseModel
        What the data should be.
    content
        A mapping.
    what : str
        What it is called in messages.

    Raises
    ------
    InvalidArgumentError
        Naming every key that is missing, unknown (with the nearest known ones) or has a value that
        cannot be used.

    Examples
    --------
    >>> class Point(BaseModel, extra="forbid"):
    ...     x: int
    >>> validated(Point, {"x": 1, "xx": 2}, "point")
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: the point has mistakes:
      xx: unknown key, did you mean 'x'?
    """
    if not isinstance(content, dict):
        keys = list(kind.model_fields)
        raise InvalidArgumentError(
            f"a {what} is a mapping of keys, such as {keys[0]} and {keys[1]}"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        mistakes = [_mistake(kind, what, detail) for detail in error.errors(include_url=False)]
    raise InvalidArgumentError(f"the {what} has mistakes:\n  " + "\n  ".join(mistakes))


def _mistake(kind: type[BaseModel], what: str, detail: Any) -> str:
    where = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        return f"{'.'.join(where)}: unknown key{_did_you_mean(kind, where)}"
    got = (
        ""
        if detail["type"] in ("missing", "value_error")
        else f" (got {SHORT.repr(detail['input'])})"
    )
    message = detail["msg"].removeprefix("Value error, ")
    return f"{'.'.join(where) or what}: {message}{got}"


def _did_you_mean(kind: type[BaseModel], where: list[str]) -> str:
    """Name the known keys nearest to the last one, in the section that the others lead to."""
    section = kind
    for part in where[:-1]:
        if part in section.model_fields:
            section = _section_in(section.model_fields[part].annotation) or section
    known = list(section.model_fields)
    near = get_close_matches(where[-1], known, n=2)
    if near:
        return f", did you mean {' or '.join(map(repr, near))}?"
    return f" (known: {', '.join(known)})"


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section among the types an annotation is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)
