"""How fast encoding and decoding without data are, and what is kept in how many bytes.

    python -m benchmarks.speed.encoding [--model FOLDER] [--zipnn PYTHON]

Adds to results/encoding.json. FOLDER has a ``model.safetensors`` of float32, such as SmolLM2-135M,
which is coded as a folder; without it, ResNet-20 and ResNet-56 of the data folder are, each to one
file. Each is encoded to 4 and 2 bits a value and
without loss, the latter in float32 and in bfloat16, and decoded. Times are processor seconds of one
thread, in megabytes of the dense bytes; a copy of the same bytes in memory and zlib -6 are timed in
the same run. PYTHON is the interpreter of an environment that has ZipNN; without it its numbers
are left out. ZipNN and zstd -3 get all bytes of the bfloat16 model in one piece, zstd split into
the planes of high and low bytes.
"""

import argparse
import json
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from time import process_time
from typing import Any

import torch
import zstandard
from safetensors.torch import load_file, save_file
from torch import Tensor

import tensorpress as tp
from tensorpress.checkpoints.encoded_files import EncodedFiles
from tensorpress.data.splits import find_weights
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "encoding.json"
BITS = (4.0, 2.0)
FOLDER_BYTES = 1 << 26  # of models that are coded tensor by tensor
ZLIB_BYTES = 1 << 25  # zlib is slow, and its speed does not depend on the size
ZIPNN = """
import sys, time, zipnn
data = open(sys.argv[1], "rb").read()
start = time.process_time()
packed = zipnn.ZipNN(bytearray_dtype="bfloat16", input_format="byte").compress(data)
print(len(packed), time.process_time() - start)
"""


def timed(job: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds of a job and what it returns."""
    start = process_time()
    result = job()
    return process_time() - start, result


def speed(size: int, seconds: float) -> float:
    """Return megabytes a second."""
    return round(size / 1e6 / seconds, 1)


def octets(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of all tensors."""
    parts = (
        t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors.values()
    )
    return b"".join(parts)


def relative_error(tensors: Mapping[str, Tensor], decoded: Mapping[str, Tensor]) -> float:
    """Return the relative error of all weights together."""
    names = [name for name, tensor in tensors.items() if tensor.dim() > 1]
    squares = [float((decoded[n].double() - tensors[n].double()).square().sum()) for n in names]
    norms = [float(tensors[name].double().square().sum()) for name in names]
    return (sum(squares) / sum(norms)) ** 0.5


def coded(tensors: Mapping[str, Tensor], folder: Path, **options: Any) -> dict[str, Any]:
    """Return size and speeds of tensors: many as a folder, one by one, few in one file."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size < FOLDER_BYTES:
        path = folder / "a.tpz"
        taken, encoded = timed(lambda: tp.encode(tensors, path, **options))
        written = encoded.bytes
        back, decoded = timed(lambda: tp.decode(path))
    else:
        (folder / "in").mkdir()
        save_file(dict(tensors), folder / "in" / "model.safetensors")
        taken, written = timed(
            lambda: tp.encode_checkpoint(folder / "in", folder / "out", **options)
        )
        files = EncodedFiles(folder / "out")
        back, decoded = timed(lambda: {name: files.read(name) for name in files.tensors})
    result = {"bytes": written, "encode": speed(size, taken), "decode": speed(size, back)}
    if "bits" in options:
        result["error"] = round(relative_error(tensors, decoded), 5)
        result["bits per value"] = round(8 * written * 4 / size, 3)
    else:
        result["off %"] = round(100 * (1 - written / size), 2)
    return result


def others(tensors: Mapping[str, Tensor], zipnn: str | None) -> dict[str, Any]:
    """Return what zstd and ZipNN leave of the bytes of tensors in bfloat16, in percent off."""
    data = octets(tensors)
    planes = data[::2] + data[1::2]
    packed = len(zstandard.ZstdCompressor(level=3).compress(planes))
    result = {"zstd -3 of planes": round(100 * (1 - packed / len(data)), 2)}
    if zipnn is not None:
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(data)
            command = [zipnn, "-c", ZIPNN, file.name]
            size = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result["ZipNN"] = round(100 * (1 - int(size.split()[0]) / len(data)), 2)
    return result


def measure(tensors: Mapping[str, Tensor], zipnn: str | None) -> dict[str, Any]:
    """Return all numbers of a model."""
    data = octets(tensors)
    copied, _ = timed(lambda: bytearray(data))
    part = data[:ZLIB_BYTES]
    zipped, _ = timed(lambda: zlib.compress(part, 6))
    result: dict[str, Any] = {
        "float32 bytes": len(data),
        "copy in memory": speed(len(data), copied),
        "zlib -6": speed(len(part), zipped),
    }
    halves = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    jobs: dict[str, tuple[Mapping[str, Tensor], dict[str, Any]]] = {
        f"{bits:g} bits": (tensors, {"bits": bits}) for bits in BITS
    }
    jobs["lossless float32"] = tensors, {"lossless": True}
    jobs["lossless bfloat16"] = halves, {"lossless": True}
    for name, (source, options) in jobs.items():
        with tempfile.TemporaryDirectory() as folder:
            result[name] = coded(source, Path(folder), **options)
        print(name, result[name], flush=True)
    result["others in bfloat16, off %"] = others(halves, zipnn)
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder of float32 weights; else the ResNets")
    parser.add_argument("--zipnn", help="the interpreter of an environment that has ZipNN")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tp.encode({"w": torch.randn(300, 300)}, Path(tempfile.mkdtemp()) / "a.tpz", bits=4)  # compiles
    files = {
        name: find_weights(Path(f"cifar10_resnet/{name}.safetensors"), None)
        for name in ("resnet20", "resnet56")
    }
    if arguments.model is not None:
        files = {arguments.model.name: arguments.model / "model.safetensors"}
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, path in files.items():
        result[name] = measure(floats(load_file(path)), arguments.zipnn)
    write_atomically(RESULT, (json.dumps(result, indent=1) + "\n").encode())


def floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of float32."""
    return {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.float32}


if __name__ == "__main__":
    main()
