"""YAML as a form to fill in: plain values only, and no key twice."""

from typing import Any

import yaml

from tensorpress.errors import InvalidArgumentError

_MOST_KEYS = 10_000  # of a mapping, those merged into it included


def parse_yaml(text: str) -> Any:
    """Parse YAML into dictionaries, lists, strings, numbers, booleans and None.

    Nothing in the text can name a Python object. A key that is given twice is an error, where
    YAML libraries take the last value without a word.

    Raises
    ------
    InvalidArgumentError
        If it cannot be read; the message says where.

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
