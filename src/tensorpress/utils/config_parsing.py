"""Strict YAML, and checks of plain data against pydantic models with errors that name the key."""

import reprlib
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tensorpress.errors import InvalidArgumentError

_MOST_KEYS = 10_000  # of a mapping, those merged into it included


def parse_yaml(text: str) -> Any:
    """Parse YAML into dictionaries, lists, strings, numbers, booleans and None.

    The text cannot name Python objects. A duplicate key is an error, where YAML libraries silently
    take the last value.

    Raises
    ------
    InvalidArgumentError
        If the text cannot be parsed; the message says where.

    Examples
    --------
    >>> parse_yaml("a: [1, two]")
    {'a': [1, 'two']}
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidArgumentError(f"cannot be read as YAML: {error}") from None


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:  # mappings merged into mappings can grow exponentially
            raise yaml.constructor.ConstructorError(
                problem="too many keys", problem_mark=node.start_mark
            )


Model = TypeVar("Model", bound=BaseModel)

SHORT = reprlib.Repr()
"""Shortens values for messages."""

SHORT.maxlevel = 2  # a few aliases in YAML can stand for any number of nested lists


def validate(kind: type[Model], content: Any, what: str) -> Model:
    """Return plain data as a pydantic model.

    Parameters
    ----------
    kind : type of BaseModel
        The model.
    content
        The data, a mapping.
    what : str
        The name of the data in messages.

    Raises
    ------
    InvalidArgumentError
        If a key is missing or unknown, or a value cannot be used. The message names every such key,
        and the nearest known ones.

    Examples
    --------
    >>> class Point(BaseModel, extra="forbid"):
    ...     x: int
    >>> validate(Point, {"x": 1, "xx": 2}, "point")
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
    renamed = getattr(section, "RENAMED", {}).get(where[-1])
    if renamed is not None:
        return f", its name is now {renamed!r}"
    known = list(section.model_fields)
    near = get_close_matches(where[-1], known, n=2)
    if near:
        return f", did you mean {' or '.join(map(repr, near))}?"
    return f" (known: {', '.join(known)})"


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section among the types an annotation is made of."""
    parts = get_args(annotation)  # in Python 3.10 tuple[int, ...] is a type, too
    if not parts and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, parts)), None)
