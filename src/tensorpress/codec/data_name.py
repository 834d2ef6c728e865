"""The data that a model was trained for, in its file: their name, and how it takes their images."""

from tensorpress.codec.adaptive_coder import Stream
from tensorpress.errors import CorruptFileError, InvalidArgumentError

# The numbers of data sets are their places here; new ones are appended. Others are written by name.
DATA_NUMBERS = ("mnist", "cifar10", "digits", "moving-digits", "fashion-mnist", "svhn")

_LARGEST = 1 << 10  # bytes of a text


def write_data_name(stream: Stream, name: str) -> None:
    """Write the number of a data set, or 0 and a name.

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
    """Read what `write_data_name` wrote, which is not trusted.

    Raises
    ------
    CorruptFileError
        If it is no name.

    Examples
    --------
    >>> stream = Stream()
    >>> write_data_name(stream, "cats")
    >>> read_data_name(Stream(stream.finish()))
    'cats'
    """
    number = stream.number("data")
    if number > len(DATA_NUMBERS):
        raise CorruptFileError(f"{number} is the number of no data set that this version has")
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
        raise InvalidArgumentError(f"{what} has {len(content)} bytes, and a file holds {_LARGEST}")
    stream.number("data", len(content))
    for byte in content:
        stream.choice(256, byte)


def read_text(stream: Stream, what: str) -> str:
    """Read what `write_text` wrote, which is not trusted.

    Raises
    ------
    CorruptFileError
        If it is too long, or no text.
    """
    size = stream.number("data")
    if size > _LARGEST:
        raise CorruptFileError(f"{what} is said to have {size} bytes")
    try:
        return bytes(stream.choice(256) for _ in range(size)).decode()
    except UnicodeDecodeError:
        raise CorruptFileError(f"{what} is no text") from None
