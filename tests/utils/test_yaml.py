import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.config_parsing import parse_yaml


def test_plain_values_and_anchors() -> None:
    text = "a: &x {n: 1, m: [.5, null, yes]}\nb: *x\nc: {<<: *x, n: 2}\n"
    first = {"n": 1, "m": [0.5, None, True]}
    assert parse_yaml(text) == {"a": first, "b": first, "c": {"n": 2, "m": [0.5, None, True]}}
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\nb: }", "line 2"),
        ("a: 1\nb: 2\na: 3\n", r"the key 'a' is used twice(.|\n)*line 3"),
        ("a: {b: 1, b: 1}", "the key 'b' is used twice"),
        ("a: !!python/object/apply:os.system ['exit']", "python/object/apply:os.system"),
        ("a: !!python/name:os.system", "python/name"),
        ("? [1, 2]\n: 3", "unhashable"),
        ("a: *nothing", "undefined alias"),
        ("a: \x00", "unacceptable character"),
        ("[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"cannot be read as YAML: (.|\n)*{message}"):
        parse_yaml(text)


def test_mappings_that_grow_exponentially_are_refused() -> None:
    merged = [", ".join([f"*a{i}"] * 9) for i in range(11)]
    lines = ["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{<<: [{m}]}}" for i, m in enumerate(merged, 1))]
    start = time.perf_counter()
    with pytest.raises(InvalidArgumentError, match="too many keys"):
        parse_yaml("\n".join(lines))
    assert time.perf_counter() - start < 20  # not a hang, on any machine


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(InvalidArgumentError):
        parse_yaml(text)
