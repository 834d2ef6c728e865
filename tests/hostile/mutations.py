"""Hostile files: valid ones with bytes or values changed, and checksums and lengths repaired."""

import json
import random
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import Any

import torch
import yaml

from tensorpress.codec import container, named_header
from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.bit_io import BitReader, BitWriter

BYTES = (
    *(b".inf", b"-1", b"0x_", b"2024-06-31", b"[[[]]]", b"null", b'"\\u0000"', b"1e999", b"true"),
    *(b"\xff", b"!!int x", b"&a [*a]", b"<<: {a: 1}", b"\n", b"  "),
)
"""What takes the place of bytes."""

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 1.5, 1e308, float("nan"), float("inf"), 1 << 63, 1 << 70),
    *("", "\0", "\ud800", "../a", "/", "x" * 300, "nan", "1e9", "channel_svd", "{}"),
    *([], {}, [[[]]], {"": []}, [1, "a", None], {"plan": {}}, [0] * 40),
)
"""What takes the place of values in JSON, YAML and pickled dictionaries."""

NAMES = ("kind", "kinds", "kind of integers", "step", "steps", "static", "reach", "scale", "scales")
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 63, 255, 32768, 1 << 20, (1 << 24) - 2)
SIZES = (0, 1, 2, 3, 7, 64, 1000, 65536, 1 << 20, 1 << 22, (1 << 31) - 1)
DTYPES = ("float32", "float64", "uint8", "bool", "int64", "bfloat16", "complex128", "load", "")


def mutate(data: bytes, form: str, chance: random.Random) -> bytes:
    """Return a file with damage that its reader meets early, or late because the form is kept."""
    return (damage if chance.random() < 0.3 else FORMS[form])(data, chance)


def damage(data: bytes, chance: random.Random) -> bytes:
    """Return bytes of which some are changed, cut, doubled or replaced."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randint(0, len(result))
        end = min(len(result), start + chance.choice((0, 1, 1, 2, 8, 40)))
        part = bytes(result[start:end])
        flipped = bytes(byte ^ 1 << chance.randrange(8) for byte in part)
        choices = (b"", part * 2, chance.randbytes(2), flipped, chance.choice(BYTES))
        result[start:end] = chance.choice(choices)
    return bytes(result)


def twist(value: Any, chance: random.Random) -> Any:
    """Return plain data of which one value or key is another; JSON in strings is looked into."""
    if isinstance(value, str) and value[:1] == "{" and chance.random() < 0.8:
        return json.dumps(twist(_parse_json(value), chance))
    if not isinstance(value, dict | list | tuple) or not value or chance.random() < 0.1:
        return chance.choice(VALUES)
    result = value.copy() if isinstance(value, dict) else list(value)
    key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    action = chance.randrange(8)
    if action == 0:
        del result[key]
    elif action == 1 and isinstance(result, dict):
        result[chance.choice(("", "x", "\0", "\ud800", f"{key}."))] = result.pop(key)
    else:
        result[key] = twist(result[key], chance)
    return tuple(result) if isinstance(value, tuple) else result


@lru_cache(64)
def _parse_json(text: str | bytes) -> Any:
    return json.loads(text)


@lru_cache(64)
def _parse_yaml(text: bytes) -> Any:
    return yaml.safe_load(text)


@lru_cache(64)
def _unpickle(data: bytes) -> Any:
    return torch.load(BytesIO(data), weights_only=True)


@lru_cache(64)
def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _change_json(data: bytes, chance: random.Random) -> bytes:
    return json.dumps(twist(_parse_json(data), chance)).encode()


def _change_yaml(data: bytes, chance: random.Random) -> bytes:
    return json.dumps(twist(_parse_yaml(data), chance)).encode()  # JSON is YAML


def _change_line(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines()
    place = chance.randrange(len(lines))
    lines[place] = _change_json(lines[place], chance)
    return b"\n".join(lines)


def _change_safetensors(data: bytes, chance: random.Random) -> bytes:
    """Change the header, whose length is repaired, and which is JSON more often than not."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = (damage if chance.random() < 0.3 else _change_json)(data[8:end], chance)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _change_archive(data: bytes, chance: random.Random) -> bytes:
    """Change one file of a zip archive, whose checksum is repaired."""
    members = _members(data)
    changed, result = chance.choice(list(members)), BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, damage(content, chance) if name == changed else content)
    return result.getvalue()


def _change_pickle(data: bytes, chance: random.Random) -> bytes:
    """Change a value of what torch saved, or the bytes of the pickle or of a tensor."""
    if chance.random() < 0.5:
        return _change_archive(data, chance)
    result = BytesIO()
    torch.save(twist(_unpickle(data), chance), result)
    return result.getvalue()


def _change_tpz(data: bytes, chance: random.Random) -> bytes:
    """Change the stream, the header or all of the payload of a `.tpz` file."""
    stream, payload = data[8:], b""
    if data[3] & 128:
        reader = BitReader(stream)
        stream, payload = reader.take(reader.varint()), stream[reader.bytes_read :]
    where = chance.randrange(3)
    if where != 1:
        stream = damage(stream, chance)
    if where == 1 and chance.random() < 0.5:
        payload = _change_header(payload, chance)
    elif where:
        payload = damage(payload, chance)
    return seal(stream, payload)


def _change_header(payload: bytes, chance: random.Random) -> bytes:
    """Change the header that a payload begins with, and deflate it again."""
    inflate = zlib.decompressobj(-15)
    try:
        header = inflate.decompress(payload)
    except zlib.error:
        return damage(payload, chance)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(damage(header, chance)) + deflate.flush() + inflate.unused_data


def seal(stream: bytes, payload: bytes) -> bytes:
    """Return a `.tpz` file of these parts with a checksum that is right."""
    length = BitWriter()
    length.varint(len(stream))
    body = length.to_bytes() + stream + payload if payload else stream
    version = bytes([container.VERSION | (128 if payload else 0)])
    return container.MAGIC + version + zlib.crc32(version + body).to_bytes(4, "little") + body


def forge(chance: random.Random) -> bytes:
    """Return a `.tpz` file of numbers that no writer writes, in the order of the format."""
    rows = [
        ["x" * chance.randrange(3), chance.choices(SIZES, k=chance.randrange(5)), name]
        for name in chance.choices(DTYPES, k=chance.randrange(6))
    ]
    header = named_header.compress([[], rows])
    stream = Stream()
    stream.number("network", 0)
    stream.number("header", len(header))
    stream.number("coder", chance.choice((0, 0, 0, 1, 2)))
    for _ in range(chance.randrange(12)):
        stream.number(chance.choice(NAMES), chance.choice(NUMBERS))
    return seal(stream.finish(), header + chance.randbytes(chance.choice((0, 3, 40, 3000))))


FORMS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bytes": damage,
    "json": _change_json,
    "yaml": _change_yaml,
    "json lines": _change_line,
    "safetensors": _change_safetensors,
    "archive": _change_archive,
    "pickle": _change_pickle,
    "tpz": _change_tpz,
}
"""Functions that change a file but keep to its form."""
