"""Whatever is in a file, its reader raises none but our own errors."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mutations import mutate
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


@pytest.mark.parametrize("name", [
    "plan.json", "plan.yaml", "plan of a folder", "config", "scores", "recipe", "sweep", "index",
    "job", "jobs", "origin", "encoded", "json lines", "override", "option", "preprocess",
])  # fmt: skip
def test_readers_of_text_raise_only_our_errors(tmp_path: Path, name: str) -> None:
    readers = text_readers(tmp_path)
    (tmp_path / "r.yaml").write_bytes(readers["recipe"].data)
    reader, chance = readers[name], random.Random(name)
    reader.read(reader.data)
    for data in [*TEXTS, *(mutate(reader.data, reader.form, chance) for _ in range(60))]:
        with suppress(TensorPressError):
            reader.read(data)


@pytest.mark.parametrize("name", [
    "tpz", "calibration", "safetensors", "pressed folder", "weights", "state dict", "checkpoint",
    "array", "arrays", "tensors",
])  # fmt: skip
def test_readers_of_binary_files_raise_only_our_errors(tmp_path: Path, name: str) -> None:
    reader, chance = binary_readers(tmp_path)[name], random.Random(name)
    reader.read(reader.data)
    mutated = (mutate(reader.data, reader.form, chance) for _ in range(60))
    for data in [b"", b"\xff" * 100, *mutated]:
        with suppress(TensorPressError):
            reader.read(data)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize("parse", [parse_yaml, parse_json])
def test_parsers_return_plain_data_or_refuse(parse: Callable[[bytes], Any], text: bytes) -> None:
    with suppress(InvalidArgumentError):
        assert isinstance(parse(text), str | int | float | list | dict | None)
