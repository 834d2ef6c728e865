"""Hostile files: how many raise foreign errors, take over 2 s or too much memory.

Half are `.tpz` files: those of small models with changed numbers, rows or bytes and a repaired
checksum, and forged ones. The others take turns through every reader of text, safetensors,
arrays, pickles and training checkpoints. Run by ``make fuzz``, or

    python -m benchmarks.fuzz --out results/fuzz.json

reads 100,000 files for each of ten seeds, and goes on after the seeds that the JSON file has. A
file that does harm is written into the folder ``--harmful``.
"""

import argparse
import json
import logging
import os
import platform
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy
import safetensors
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "hostile"))

from mutations import forge, mutate
from readers import Reader, binary_readers, text_readers

import tensorpress as tp
from tensorpress.codec.state_dict import load_tensors
from tensorpress.errors import TensorPressError
from tensorpress.models.zoo import build

WARM = 2000  # files until all compilers and libraries are loaded, which are not counted
SECONDS, FREE, PER_BYTE = 2.0, 64 << 20, 64
MEMORY = Path("/dev/shm")


def dense_models() -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Yield small dense models, and the options by which they are written."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2))
    large = nn.Linear(130, 130)  # so many values are decoded by compiled code
    uniform = {"quantizer": tp.UniformQuantizer(16, 3.0), "norms": "float32"}
    named = {"data": "digits", "preprocess": "{size: 8, mean: [0], std: [1]}"}
    choices = ({}, {"coder": "huffman"}, uniform, named, {"lossless": True})
    yield from ((linear, options) for options in choices)
    yield deepcopy(linear).bfloat16(), {"lossless": True}
    yield from ((conv, {}), (large, {}))


def tpz_readers(folder: Path) -> list[tuple[str, Reader]]:
    """Return `.tpz` files of several models, schemes, quantizers and coders, by three readers."""
    path, readers = folder / "hostile.tpz", []

    def add(model: nn.Module, dense: nn.Module | None, options: dict[str, Any]) -> None:
        tp.save(model, path, **options)
        data = path.read_bytes()
        for name, read in {
            "tpz, load": lambda path: tp.load(path, dense),
            "tpz, tensors": load_tensors,
            "tpz, inspect": tp.inspect,
        }.items():
            readers.append((name, Reader(data, "tpz", from_path(path, read))))

    models = list(dense_models())
    for dense, options in models:
        add(dense, dense, options)
    linear, conv = models[0][0], models[-2][0]
    for dense, schemes in (
        (linear, ("channel_svd", "tt_weight", "svd_weight", "ada_tucker", "low_rank_sparse")),
        (conv, ("tucker2", "cp", "tensor_train", "spatial_svd")),
    ):
        for scheme in schemes:
            add(tp.press(dense, tp.plan(dense, scheme=scheme, budget="params=70%")), dense, {})
    readers *= 10  # a whole network takes ten times as long to read as a layer or two
    lenet = build("lenet5")
    plan = tp.plan(lenet, scheme="ada_tucker", budget="params=900")
    add(tp.press(lenet, plan, init="kaiming"), None, {"network": "lenet5"})
    return readers


def from_path(path: Path, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    """Return a function of bytes that writes them to a path and reads that."""
    return lambda data: (path.write_bytes(data), read(path))


def cases(folder: Path, chance: random.Random) -> Iterator[tuple[str, bytes, Reader]]:
    """Yield the name of a reader, a hostile file and the reader, without end."""
    tpz = tpz_readers(folder)
    for name in ("text", "binary"):
        (folder / name).mkdir()
    others = [*text_readers(folder / "text").items(), *binary_readers(folder / "binary").items()]
    while True:
        for name, reader in others:
            yield name, mutate(reader.data, reader.form, chance), reader
            kind, reader = chance.choice(tpz)
            if chance.random() < 0.3:
                yield f"{kind}, forged", forge(chance), reader
            else:
                yield kind, mutate(reader.data, reader.form, chance), reader


class Memory:
    """The memory of this process and its peak, as Linux tells them."""

    def __init__(self) -> None:
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._clear = os.open("/proc/self/clear_refs", os.O_WRONLY)

    def reset(self) -> int:
        """Make the present memory the peak, and return it in bytes."""
        os.pwrite(self._clear, b"5", 0)
        return self.peak()

    def peak(self) -> int:
        """Return the most memory since `reset`, in bytes."""
        text = os.pread(self._status, 4096, 0)
        start = text.index(b"VmHWM:") + 6
        return int(text[start : text.index(b"kB", start)]) << 10


@dataclass
class Counts:
    """What became of the files of a run."""

    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    harm: Counter[str] = field(default_factory=Counter)
    most_seconds: float = 0.0
    most_bytes: int = 0

    def read(self, name: str, data: bytes, reader: Reader, memory: Memory) -> list[str]:
        """Read a file, count what comes of it, and return the harm it does."""
        before, begun, harm = memory.reset(), time.process_time(), []
        try:
            reader.read(data)
            outcome = "accepted"
        except TensorPressError:
            outcome = "refused"
        except Exception as error:
            outcome = f"foreign {type(error).__name__}"
            harm.append(outcome)
        seconds, taken = time.process_time() - begun, memory.peak() - before
        self.kinds.setdefault(name, Counter())[outcome] += 1
        self.most_seconds = max(self.most_seconds, seconds)
        self.most_bytes = max(self.most_bytes, taken)
        if seconds > SECONDS:
            harm.append("over 2 s")
        if taken > FREE + PER_BYTE * len(data):
            harm.append("over 64 MB + 64 times the file")
        self.harm.update(harm)
        return harm

    def table(self, files: int) -> dict[str, Any]:
        """Return the counts as plain data."""
        return {
            "files": files,
            "foreign exceptions": sum(n for kind, n in self.harm.items() if "foreign" in kind),
            "over 2 s": self.harm["over 2 s"],
            "over 64 MB + 64 times the file": self.harm["over 64 MB + 64 times the file"],
            "most seconds": round(self.most_seconds, 3),
            "most megabytes": round(self.most_bytes / 1e6, 1),
            "kinds": {name: dict(sorted(self.kinds[name].items())) for name in sorted(self.kinds)},
        }


def read_files(seed: int, files: int, harmful: Path | None) -> dict[str, Any]:
    """Read the hostile files of a seed, and return the counts."""
    counts, memory, begun = Counts(), Memory(), time.process_time()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        everything = cases(Path(folder), random.Random(seed))
        for number, (name, data, reader) in zip(range(files), everything, strict=False):
            for kind in counts.read(name, data, reader, memory):
                print(f"{kind}: {name}, seed {seed}, file {number}", flush=True)
                if harmful is not None:
                    harmful.mkdir(exist_ok=True)
                    file = f"{kind} {name} {seed} {number}".replace(" ", "-")
                    (harmful / file).write_bytes(data)
    return counts.table(files) | {"processor seconds": round(time.process_time() - begun)}


def add(table: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of two runs together: sums, and the largest of what is the most."""
    result = table | other
    for key in table.keys() & other.keys():
        if isinstance(table[key], dict):
            result[key] = add(table[key], other[key])
        else:
            result[key] = (max if "most" in key else sum)((table[key], other[key]))
    return result


def main() -> None:
    """Read hostile files seed by seed, and write the counts after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--files", type=int, default=100_000, help="files a seed")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, which is continued")
    parser.add_argument("--harmful", type=Path, help="a folder for the files that do harm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    packages = (tp, torch, numpy, numba, safetensors)
    versions = {package.__name__: package.__version__ for package in packages}
    content: dict[str, Any] = {"seeds": [], "counts": {}}
    if options.out.exists():
        content = json.loads(options.out.read_text())
    read_files(options.seeds, WARM, None)
    for seed in range(options.seeds):
        if seed not in content["seeds"]:
            counts = read_files(seed, options.files, options.harmful)
            content["seeds"].append(seed)
            content["counts"] = add(content["counts"], counts)
            content["versions"] = {"python": platform.python_version()} | versions
            options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
