"""Whatever is in a file, its reader raises none but our own errors."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from readers import binary_readers, text_readers

from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.utils.config_parsing import parse_json, parse_yaml

TEXTS = [
    *(b"2024-06-31", b"!!int abc", b"!!int ''", b"0x_", b"9" * 5000, b"0x" + b"f" * 5000),
    *(b"!!timestamp abc", b"!!bool x", b"!!float x", b"!!set {a}", b"!!binary aa", b"1:2:99999"),
    *(b"[" * 100_000, b"{a: " * 5000, b'{"a":' * 100_000, b"&a [*a]", b"? [a]\n: b", b"<<: 3"),
    *(b"\xff\xfe\x00", b"\x00", b'"\\ud800"', b"NaN", b"-Infinity", b"1e999", b"", b"null", b"[]"),
    *(
        b"{}",
        b'{"weight_map": 3}',
        b'{"weight_map": {"x": "\\u0000"}}',
        b'{"weight_map": {"a": []}}',
    ),
    *(b'{"job": 1, "about": [], "result": {}}', b'{"metric": 1e300, "dense": {}, "layers": []}'),
    *(b"recipe: [1]\ngrid: 3", b'title: {a: b}\nrecipe: "a\\0b"', b"lenet5,a=0x_", b"*: !!int x"),
]
VALUES = [
    b".inf",
    b"-1",
    b"0x_",
    b"2024-06-31",
    b"[[[]]]",
    b"null",
    b'"\\u0000"',
    b"1e999",
    b"true",
]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return a file with some bytes changed, cut, doubled, or replaced by a hostile value."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        start = chance.randint(0, len(result))
        end = min(len(result), start + chance.choice((1, 1, 2, 8, 40)))
        part = chance.choice(
            (b"", result[start:end] * 2, chance.randbytes(2), chance.choice(VALUES))
        )
        result[start:end] = part
    return bytes(result)


@pytest.mark.parametrize("name", [
    "plan.json", "plan.yaml", "scores", "recipe", "sweep", "index", "job", "origin", "override",
    "option",
])  # fmt: skip
def test_readers_of_text_raise_only_our_errors(tmp_path: Path, name: str) -> None:
    readers = text_readers(tmp_path)
    (tmp_path / "r.yaml").write_bytes(readers["recipe"][0])
    valid, read = readers[name]
    read(valid)
    chance = random.Random(name)
    for data in [*TEXTS, *(damaged(valid, chance) for _ in range(60))]:
        with suppress(TensorPressError):
            read(data)


@pytest.mark.parametrize("name", ["tpz", "calibration", "safetensors", "checkpoint"])
def test_readers_of_binary_files_raise_only_our_errors(tmp_path: Path, name: str) -> None:
    valid, read = binary_readers(tmp_path)[name]
    read(valid)
    chance = random.Random(name)
    for data in [b"", b"\xff" * 100, *(damaged(valid, chance) for _ in range(60))]:
        with suppress(TensorPressError):
            read(data)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize("parse", [parse_yaml, parse_json])
def test_parsers_return_plain_data_or_refuse(parse: Callable[[bytes], Any], text: bytes) -> None:
    with suppress(InvalidArgumentError):
        assert isinstance(parse(text), str | int | float | list | dict | None)
