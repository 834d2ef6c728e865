import pytest

from tensorpress.errors import InvalidArgumentError
from tensorpress.models import ModelName, parse_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lenet5", ModelName("", "lenet5")),
        ("hf:org/name", ModelName("hf", "org/name")),
        ("a.b:make", ModelName("a.b", "make")),
        (
            "timm:x,a=1,b=true,c=0.5,d=gelu,e=null",
            ModelName("timm", "x", {"a": 1, "b": True, "c": 0.5, "d": "gelu", "e": None}),
        ),
    ],
)
def test_a_name_is_taken_apart(text: str, expected: ModelName) -> None:
    assert parse_name(text) == expected
    assert str(parse_name(text)) == text.split(",")[0]


@pytest.mark.parametrize("text", ["", ":x", "timm:", "a,b", "a,=1", "a,1b=2", "a,", "a,k=[1"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_name(text)
