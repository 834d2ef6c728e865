"""Hostile files for hours: how many raise foreign errors, take over 2 s or too much memory.

Three kinds take turns: `.tpz` files whose numbers, rows or bytes were changed and whose checksum
was repaired; texts for every reader of YAML and JSON; safetensors, calibration files and training
checkpoints. Run by ``make fuzz``, or

    python -m benchmarks.fuzz --minutes 60 --seed 0

prints counts as JSON every minute. A file that does harm is kept in ``--keep``.
"""

import argparse
import json
import logging
import random
import resource
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "hostile"))

from readers import binary_readers, text_readers

import tensorpress as tp
from tensorpress.codec import container, named_header
from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.bit_io import BitWriter
from tensorpress.codec.state_dict import load_tensors
from tensorpress.errors import TensorPressError
from tensorpress.models.zoo import build

WARM = 500
SECONDS, FREE, PER_BYTE = 2.0, 64 << 20, 64
VALUES = (
    b".inf",
    b"-1",
    b"0x_",
    b"2024-06-31",
    b"[[[]]]",
    b"null",
    b'"\\u0000"',
    b"1e999",
    b"\xff",
)
NAMES = ("kind", "kinds", "kind of integers", "step", "steps", "static", "reach", "scale", "scales")
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 63, 255, 32768, 1 << 20, (1 << 24) - 2)
SIZES = (0, 1, 2, 3, 7, 64, 1000, 65536, 1 << 20, 1 << 22, (1 << 31) - 1)
DTYPES = ("float32", "float64", "uint8", "bool", "int64", "bfloat16", "complex128", "load", "")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return bytes of which some are changed, cut, doubled or replaced."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randint(0, len(result))
        end = min(len(result), start + chance.choice((0, 1, 1, 2, 8, 40)))
        flipped = bytes(byte ^ 1 << chance.randrange(8) for byte in result[start:end])
        choices = (b"", bytes(result[start:end]) * 2, chance.randbytes(2), flipped)
        result[start:end] = chance.choice((*choices, chance.choice(VALUES)))
    return bytes(result)


def seal(stream: bytes, payload: bytes) -> bytes:
    """Return a `.tpz` file of these parts with a checksum that is right."""
    length = BitWriter()
    length.varint(len(stream))
    body = length.to_bytes() + stream + payload if payload else stream
    version = bytes([container.VERSION | (128 if payload else 0)])
    return container.MAGIC + version + zlib.crc32(version + body).to_bytes(4, "little") + body


def forged(chance: random.Random) -> bytes:
    """Return a file of numbers that a writer would not write, in the order of the format."""
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


def sources() -> list[container.Container]:
    """Return small files of several networks, schemes, quantizers and coders."""
    torch.manual_seed(0)
    lenet = build("lenet5")
    plain = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20))
    models: list[tuple[nn.Module, dict[str, Any]]] = [
        (plain, {}),
        (plain, {"coder": "huffman"}),
        (plain, {"quantizer": tp.UniformQuantizer(16, 3.0), "norms": "float32"}),
    ]
    models += [
        (tp.press(plain, tp.plan(plain, scheme=scheme, budget="params=60%")), {})
        for scheme in ("ada_tucker", "channel_svd", "tt_weight", "svd_weight")
    ]
    plan = tp.plan(lenet, scheme="ada_tucker", budget="params=900")
    models.append((tp.press(lenet, plan, init="kaiming"), {"network": "lenet5"}))
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for model, options in models:
            tp.save(model, f"{folder}/a.tpz", **options)
            parts.append(container.read(f"{folder}/a.tpz"))
    return parts


def altered(parts: container.Container, chance: random.Random) -> bytes:
    """Return a file with damage in its stream, its header or all of its payload."""
    where = chance.randrange(3)
    stream = damaged(parts.stream, chance) if where != 1 else parts.stream
    payload = parts.payload
    if where == 1 and chance.random() < 0.5:
        inflate = zlib.decompressobj(-15)
        try:
            header = inflate.decompress(payload)
        except zlib.error:
            return seal(stream, damaged(payload, chance))
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        payload = deflate.compress(damaged(header, chance)) + deflate.flush() + inflate.unused_data
    elif where:
        payload = damaged(payload, chance)
    return seal(stream, payload)


def peak_memory() -> int:
    """Return the most memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def reset_peak() -> int:
    """Make the present memory the peak, where the system can, and return it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return peak_memory()
    return int(next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)) << 10


def high_water() -> int:
    """Return the peak since `reset_peak`."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return peak_memory()
    return int(next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)) << 10


def cases(folder: Path, chance: random.Random) -> Iterator[tuple[str, bytes, Callable[..., Any]]]:
    """Yield the name of a reader, a hostile file and the reader, without end."""
    model = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20))
    path = folder / "hostile.tpz"

    def with_path(read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        return lambda data: (path.write_bytes(data), read(path))

    tpz = {
        "tpz load": with_path(lambda path: tp.load(path, model)),
        "tpz zoo": with_path(tp.load),
        "tpz tensors": with_path(load_tensors),
        "tpz inspect": with_path(tp.inspect),
    }
    originals = sources()
    (folder / "text").mkdir()
    (folder / "binary").mkdir()
    texts = text_readers(folder / "text")
    others = binary_readers(folder / "binary")
    while True:
        for name, read in tpz.items():
            yield name, altered(chance.choice(originals), chance), read
            yield name, forged(chance), read
        for readers in (texts, others):
            name = chance.choice(list(readers))
            data, read = readers[name]
            yield name, damaged(data, chance), read


def main() -> None:
    """Read hostile files until the time is over, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files that do harm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    counts: Counter[str] = Counter()
    start = report = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, data, read) in enumerate(
            cases(Path(folder), random.Random(options.seed))
        ):
            before, begun = reset_peak(), time.process_time()
            harm = []
            try:
                read(data)
                counts["accepted"] += 1
            except TensorPressError:
                counts["refused"] += 1
            except Exception as error:
                harm.append(f"foreign {type(error).__name__}")
            if number < WARM:  # compilers are loaded
                continue
            if time.process_time() - begun > SECONDS:
                harm.append("over 2 s")
            if high_water() - before > FREE + PER_BYTE * len(data):
                harm.append("over 64 MB + 64 times the file")
            for kind in harm:
                counts[f"{kind}, {name}"] += 1
                if options.keep is not None:
                    options.keep.mkdir(exist_ok=True)
                    file = f"{kind}-{name}-{options.seed}-{number}".replace(" ", "_")
                    (options.keep / file).write_bytes(data)
            counts["files"] += 1
            over = time.monotonic() - start > 60 * options.minutes
            if over or time.monotonic() - report > 60:
                report = time.monotonic()
                print(json.dumps(counts), flush=True)
            if over:
                return


if __name__ == "__main__":
    main()
