"""What coded weights take, and how fast they are coded.

    python -m benchmarks.files.coding [--speed]

Writes results/coding.json. Sizes: the convolutions and the classifier of a trained ResNet-20, on
steps in units of each weight's deviation, rounded to nearest and towards zero; and the committed
LeNets with the quantizers they have. Each is coded adaptively, by static tables of 24 bits,
by Huffman codes, and as int8 (int16 where that is too narrow) by zstd -19 and xz -9. Speeds:
medians of interleaved runs on 2**24 Gaussian weights on one thread, and on the ResNet.
"""

import argparse
import json
import lzma
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.codec.adaptive_coder import Stream, nearest_scale
from tensorpress.codec.bit_io import BitWriter
from tensorpress.codec.decode_tensors import decode_tensors
from tensorpress.codec.encode_tensors import encode_tensors
from tensorpress.codec.huffman import HuffmanCode
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.codec.static_coder import encode_range
from tensorpress.codec.static_tables import Prior, entropy_bits, write_prior
from tensorpress.codec.tpz_file import open_file
from tensorpress.data.splits import find_weights
from tensorpress.models.zoo import build
from tensorpress.models.zoo.weights import load_weights
from tensorpress.utils.atomic_files import write_atomically

ROOT = Path(__file__).parents[2] / "results"
RESULT = ROOT / "coding.json"
STEPS = (1 / 8, 1 / 4, 1 / 2, 1.0, 1.5)  # of a weight's standard deviation
ROUNDINGS = {"nearest": 0.5, "towards zero": 0.35}
RUNS = 3
Arrays = Sequence[tuple[tuple[int, ...], NDArray[np.int32]]]


def resnet20() -> nn.Module:
    """Return the trained network."""
    network = build("resnet20")
    load_weights(network, find_weights(Path("cifar10_resnet/resnet20.safetensors"), None))
    return network


def weights_of(network: nn.Module) -> list[Tensor]:
    """Return the weights of more than one axis."""
    return [tensor.detach() for tensor in network.parameters() if tensor.dim() > 1]


def rounded(weight: Tensor, step: float, offset: float) -> NDArray[np.int32]:
    """Return the symbols of a weight; below one half, `offset` makes more of them zero."""
    multiples = weight.double() / (float(weight.double().std()) * step)
    found = multiples.sign() * (multiples.abs() + offset).floor()
    return found.to(torch.int32).reshape(-1).numpy()


def adaptive(arrays: Arrays) -> int:
    """Return the bytes of arrays in one adaptive stream."""
    stream = Stream()
    stream.expect(sum(symbols.size for _, symbols in arrays))
    for shape, symbols in arrays:
        scale = nearest_scale(symbols)
        stream.signed("scale", scale)
        stream.symbols(shape, scale, symbols)
    return len(stream.finish())


def static(arrays: Arrays) -> int:
    """Return the bytes of arrays and their tables in one static stream."""
    writer = BitWriter()
    earlier: list[Prior] = []
    priors = []
    for _, symbols in arrays:
        reach = int(np.abs(symbols).max(initial=1))
        priors.append(write_prior(writer, symbols, reach, earlier)[0])
    data = encode_range([symbols for _, symbols in arrays], priors)
    return len(writer.to_bytes()) + len(data)


def huffman(arrays: Arrays) -> int:
    """Return the bytes of arrays, each with its own code, and of the codes."""
    writer, size = BitWriter(), 0
    for _, symbols in arrays:
        code = HuffmanCode.from_symbols(symbols)
        code.write(writer)
        size += len(code.encode(symbols))
    return len(writer.to_bytes()) + size


def sizes(arrays: Arrays) -> dict[str, Any]:
    """Return what arrays take, in bytes."""
    symbols = [symbols for _, symbols in arrays]
    narrow = max(int(np.abs(s).max(initial=0)) for s in symbols) < 128
    plain = np.concatenate(symbols).astype(np.int8 if narrow else np.int16).tobytes()
    entropies = [s.size * entropy_bits(torch.from_numpy(s)) / 8 for s in symbols]
    found: dict[str, Any] = {
        "values": sum(s.size for s in symbols),
        "zeros": round(sum(int((s == 0).sum()) for s in symbols) / sum(s.size for s in symbols), 4),
        "entropy": round(sum(entropies), 1),
        "adaptive": adaptive(arrays),
        "static": static(arrays),
        "huffman": huffman(arrays),
        "zstd -19": len(zstandard.ZstdCompressor(level=19).compress(plain)),
        "xz -9": len(lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)),
    }
    return found | {"adaptive by entropy": round(found["adaptive"] / found["entropy"], 4)}


def of_file(path: Path) -> dict[str, Any]:
    """Return the sizes of a committed file's symbols, and its parts."""
    arrays = [
        (tuple(stored.values.shape), stored.symbols)
        for stored in open_file(path).tensors()
        if stored.symbols is not None and stored.symbols.size
    ]
    found = tp.inspect(path)
    return sizes(arrays) | {"file": found.size, "parts": found.parts}


def of_resnet() -> dict[str, Any]:
    """Return the sizes of a trained ResNet-20 at several steps, and of its files."""
    network = resnet20()
    weights = weights_of(network)
    found: dict[str, Any] = {}
    for step in STEPS:
        for name, offset in ROUNDINGS.items():
            arrays = [(tuple(w.shape), rounded(w, step, offset)) for w in weights]
            found[f"step {step:g} of the deviation, {name}"] = sizes(arrays)
    return found | {"files": {f"{step:g}": file_of(network, step) for step in (1 / 4, 1.0)}}


def file_of(network: nn.Module, step: float) -> dict[str, Any]:
    """Return the parts of a file of ResNet-20 whose weights have this relative step."""
    steps = {
        name: StepQuantizer.nearest(float(t.detach().std()) * step if t.dim() > 1 else 2**-6)
        for name, t in network.named_parameters()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tpz"
        size = tp.save(network, path, network="resnet20", quantizer=steps)
        return {"file": size, "parts": tp.inspect(path).parts}


def speeds() -> dict[str, Any]:
    """Return megabytes of float32 a second, by processor time of one thread."""
    torch.set_num_threads(1)
    weights = weights_of(resnet20())
    gaussian = [torch.randn(4096, 4096, generator=torch.manual_seed(0))]
    jobs = {
        "2**24 Gaussian weights, step 0.5": (gaussian, 0.5),
        "2**24 Gaussian weights, step 1.5": (gaussian, 1.5),
        "ResNet-20, step 0.5": (weights, 0.5),
        "ResNet-20, step 1.5": (weights, 1.5),
    }
    times: dict[str, dict[str, list[float]]] = {name: {"encode": [], "decode": []} for name in jobs}
    for run in range(RUNS + 1):  # the first compiles
        for name, (tensors, step) in jobs.items():
            steps = [StepQuantizer.nearest(float(t.std()) * step) for t in tensors]
            stream = Stream()
            taken, payload = timed(lambda: encode_tensors(stream, tensors, steps))  # noqa: B023
            data = stream.finish()
            shapes, dtypes = [tuple(t.shape) for t in tensors], [t.dtype for t in tensors]
            back, _ = timed(
                lambda: decode_tensors(Stream(data), payload, shapes, dtypes)  # noqa: B023
            )
            if run:
                times[name]["encode"].append(taken)
                times[name]["decode"].append(back)
    return {
        name: {
            way: round(
                4 * sum(t.numel() for t in jobs[name][0]) / 1e6 / statistics.median(taken), 1
            )
            for way, taken in ways.items()
        }
        for name, ways in times.items()
    }


def timed(job: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds of a job and what it returns."""
    start = process_time()
    found = job()
    return process_time() - start, found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", action="store_true", help="measure speeds alone")
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if not parser.parse_args().speed:
        found["ResNet-20"] = of_resnet()
        files = sorted(ROOT.glob("lenet*/seed0/model.tpz"))
        found["LeNets"] = {path.parts[-3]: of_file(path) for path in files}
    else:
        found["MB of float32 a second"] = speeds()
    write_atomically(RESULT, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
