"""Texts in a file: the name of a model's data, and how it takes images."""

from tensorpress.codec.adaptive_coder import Stream
from tensorpress.errors import CorruptFileError, InvalidArgumentError

# Files contain the index of a name in this list, so append only. Other names are written as text.
DATA_NUMBERS = ("mnist", "cifar10", "digits", "moving-digits", "fashion-mnist", "svhn")

_LARGEST = 1 << 10  # bytes of a text


def write_data_name(stream: Stream, name: str) -> None:
    """Write the number of a dataset, or 0 and a name.

    Raises
    ------
    InvalidArgumentError
        If the name is too long.
    """
    if name in DATA_NUMBERS:
        stream.number("data", 1 + DATA_NUMBERS.index(name))
        return
    stream.number("data", 0)
    write_text(stream, "the name of the data", name)


def read_data_name(stream: Stream) -> str:
    """Read what `write_data_name` wrote, from an untrusted stream.

    Raises
    ------
    CorruptFileError
        If it is not a name.

    Examples
    --------
    >>> stream = Stream()
    >>> write_data_name(stream, "cats")
    >>> read_data_name(Stream(stream.finish()))
    'cats'
    """
    number = stream.number("data")
    if number > len(DATA_NUMBERS):
        raise CorruptFileError(f"this version has no dataset with the number {number}")
    return DATA_NUMBERS[number - 1] if number else read_text(stream, "the name of the data")


def write_text(stream: Stream, what: str, text: str) -> None:
    """Write a short text; ``what`` names it in errors.

    Raises
    ------
    InvalidArgumentError
        If the text is too long.
    """
    content = text.encode()
    if len(content) > _LARGEST:
        raise InvalidArgumentError(
            f"{what} has {len(content)} bytes, but a file takes at most {_LARGEST}"
        )
    stream.number("data", len(content))
    for byte in content:
        stream.choice(256, byte)


def read_text(stream: Stream, what: str) -> str:
    """Read what `write_text` wrote, from an untrusted stream.

    Raises
    ------
    CorruptFileError
        If it is too long, or not text.
    """
    size = stream.number("data")
    if size > _LARGEST:
        raise CorruptFileError(f"{what} claims to have {size} bytes")
    try:
        return bytes(stream.choice(256) for _ in range(size)).decode()
    except UnicodeDecodeError:
        raise CorruptFileError(f"{what} is not text") from None
