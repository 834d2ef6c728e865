"""Strict YAML and JSON, and validation of plain data by pydantic with errors by key."""

import json
import reprlib
from difflib import get_close_matches
from math import isfinite
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tensorpress.errors import InvalidArgumentError

_MOST_DIGITS = 80  # of a 64-bit integer, in any base and with underscores
_SHOWN_DIGITS = 20
_MOST_KEYS = 10_000  # of a mapping, including merged ones


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML into dictionaries, lists, strings, numbers, booleans and None.

    The text must be UTF-8 and cannot create Python objects; dates are strings. Duplicate keys, of
    which YAML libraries silently use the last, and integers beyond 64 bits are errors.

    Raises
    ------
    InvalidArgumentError
        If the text cannot be parsed; the message has the place.

    Examples
    --------
    >>> parse_yaml("a: [1, two]")
    {'a': [1, 'two']}
    """
    try:
        return _check_tree(yaml.load(_decode(text), _Loader), set(), set())
    except Exception as error:  # PyYAML's constructors raise errors of any class
        raise InvalidArgumentError(f"cannot be read as YAML: {_reason(error)}") from None


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Parse JSON in UTF-8.

    Parameters
    ----------
    text : str or bytes
        The text.
    finite : bool
        Whether to reject NaN and infinite numbers, as standard JSON does.

    Raises
    ------
    InvalidArgumentError
        If the text cannot be parsed, or has an integer beyond 64 bits.

    Examples
    --------
    >>> parse_json('{"a": [1, 0.5]}')
    {'a': [1, 0.5]}
    >>> parse_json("1e999")
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: cannot be read as JSON: 1e999 is not a finite number
    """
    parse_float = _finite_float if finite else float
    try:
        tree = json.loads(
            _decode(text),
            parse_float=parse_float,
            parse_constant=parse_float,
            parse_int=_plain_integer,
        )
        return _check_tree(tree, set(), set())
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"cannot be read as JSON: {_reason(error)}") from None


def _decode(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode("utf-8")


def _check_tree(value: Any, around: set[int], done: set[int]) -> Any:
    """Check that lists do not contain themselves, and that text can be encoded."""
    if isinstance(value, str):
        value.encode()
    if not isinstance(value, list | dict) or id(value) in done:
        return value
    if id(value) in around:
        raise ValueError("a list or mapping contains itself")
    around.add(id(value))
    for part in [*value, *value.values()] if isinstance(value, dict) else value:
        _check_tree(part, around, done)
    around.remove(id(value))
    done.add(id(value))
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error) or type(error).__name__


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"{digits[:_SHOWN_DIGITS]} is not a finite number")
    return value


def _plain_integer(digits: str) -> int:
    return _check_integer(int(digits) if len(digits) <= _MOST_DIGITS else 1 << 64)


def _check_integer(value: int) -> int:
    if value.bit_length() > 64:
        raise ValueError("a number has more than 64 bits")
    return value


class _Loader(yaml.SafeLoader):
    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > _MOST_DIGITS:
            raise ValueError("a number has more than 64 bits")
        return _check_integer(super().construct_yaml_int(node))

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} is used twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:  # merged mappings can grow exponentially
            raise yaml.constructor.ConstructorError(
                problem="too many keys", problem_mark=node.start_mark
            )


_PLAIN = ("null", "bool", "int", "float", "seq", "map", "str")
_Loader.yaml_constructors = {
    tag: function
    for tag, function in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix("tag:yaml.org,2002:") in _PLAIN
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

Model = TypeVar("Model", bound=BaseModel)

SHORT = reprlib.Repr()
"""Shortens values for messages."""

SHORT.maxlevel = 2  # YAML aliases can create any number of nested lists


def validate(kind: type[Model], content: Any, what: str) -> Model:
    """Convert plain data to a pydantic model.

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
        If a key is missing or unknown, or a value is invalid. The message lists all errors by key
        and suggests similar keys.

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
            f"a {what} must be a mapping with keys such as {keys[0]} and {keys[1]}"
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
    """Suggest keys similar to the last one, in its section."""
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
    """Return the section class in an annotation."""
    parts = get_args(annotation)  # in Python 3.10 tuple[int, ...] is also a type
    if not parts and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, parts)), None)
