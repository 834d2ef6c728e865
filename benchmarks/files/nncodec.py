"""ResNet-20 in a file without training: size and test error beside NNCodec (ISO/IEC 15938-17).

NNCodec runs in an environment of its own, given by its interpreter; without one its rows are left
out. Every row is kept in a journal, so that an interrupted run goes on. Steps, the price of a bit
and all else were chosen on held-out training images; test images are looked at here only.

    python -m benchmarks.files.nncodec --data DIRECTORY --journal FOLDER [--nncodec PYTHON]
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.codec.state_dict import load_tensors
from tensorpress.data import load
from tensorpress.data.images import ImageSet
from tensorpress.models import zoo
from tensorpress.models.zoo.weights import load_weights
from tensorpress.train import evaluate
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "nncodec.json"
WEIGHTS = "cifar10_resnet/resnet20.safetensors"
QPS = (-30, -26, -22, -18, -14)
SIZES = (173_602, 141_398, 111_709, 83_749, 58_602)
SMALL = (40_000, 30_000)
CALIBRATION, BATCH = 256, 64

# What NNCodec imports of frameworks is not used to code a dictionary of arrays; a stand-in lets it
# be imported without them.
NNCODEC = """
import importlib.abc, importlib.machinery, json, sys, time
from unittest.mock import MagicMock

class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    NAMES = ("torchvision", "cv2", "ptflops", "torchmetrics", "wandb", "sentencepiece", "flwr",
             "hydra", "tensorflow")
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, StandIn())
import numpy as np
from nncodec.nn import decode, encode
from safetensors.numpy import load_file, save_file

source, qp, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
arrays = {name: value.astype(np.int32) if value.dtype.kind in "iu" else value
          for name, value in load_file(source).items()}
start = time.perf_counter()
stream = encode(arrays, args={"qp": qp, "verbose": False, "results": out + ".d"})
middle = time.perf_counter()
decoded = decode(stream)
end = time.perf_counter()
save_file({name: np.ascontiguousarray(value).reshape(arrays[name].shape)
           for name, value in decoded.items()}, out)
print(json.dumps({"bytes": len(stream), "encode_s": middle - start, "decode_s": end - middle}))
"""

Batches = list[tuple[Tensor, Tensor]]


def batches(images: ImageSet, size: int) -> Batches:
    """Return images as the network takes them."""
    preprocess = zoo.network("resnet20").preprocess
    return [
        (
            preprocess(images.images[k : k + size]).to(memory_format=torch.channels_last),
            images.labels[k : k + size],
        )
        for k in range(0, len(images), size)
    ]


def nncodec(python: Path, weights: Path, qp: int, model: nn.Module) -> dict[str, Any]:
    """Code the weights with NNCodec and put what it decodes into a model."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "decoded.safetensors")
        Path(f"{out}.d").mkdir()
        words = [str(python), "-c", NNCODEC, str(weights), str(qp), str(out)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        state = {**model.state_dict(), **load_file(out)}
    model.load_state_dict(state)
    return {"codec": "NNCodec 2.1.3", "qp": qp, **json.loads(done.stdout.splitlines()[-1])}


def ours(source: Any, size: int, calibration: Batches | None, model: nn.Module) -> dict[str, Any]:
    """Code a model or its state dict, and put what is decoded into a model."""
    whole = isinstance(source, nn.Module)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tpz")
        start = perf_counter()
        done = tp.encode(
            source,
            path,
            size=size,
            network="resnet20" if whole else None,
            calibration=calibration,
        )
        middle = perf_counter()
        state = load_tensors(path)
        end = perf_counter()
        if path.stat().st_size != done.bytes:
            raise AssertionError("the file has another size than was said")
    model.load_state_dict(state)
    kind = "calibrated" if calibration else "data-free" if whole else "state dict"
    return {
        "codec": f"TensorPress, {kind}",
        "size": size,
        "bytes": done.bytes,
        "encode_s": middle - start,
        "decode_s": end - middle,
    }


def write_result(rows: list[dict[str, Any]]) -> None:
    """Write the rows, and for each codec its points from the smallest file to the largest."""
    setup = {
        "network": "resnet20",
        "weights": WEIGHTS,
        "calibration_images": CALIBRATION,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, one thread, busy with other work",
    }
    curves: dict[str, list[list[float]]] = {}
    for row in sorted(rows, key=lambda row: row["bytes"]):
        curves.setdefault(row["codec"], []).append([row["bytes"], row["test_accuracy"]])
    content = {"setup": setup, "rows": rows, "curves": curves}
    write_atomically(RESULT, json.dumps(content, indent=1).encode())


def main() -> None:
    """Run what the journal does not hold yet and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--nncodec", type=Path, help="interpreter of its environment")
    given = parser.parse_args()
    given.journal.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    weights = given.data / WEIGHTS
    splits = load("cifar10", given.data, validation=5000)
    test = batches(splits.test, 250)
    dense = zoo.build("resnet20").eval()
    load_weights(dense, weights)
    taken = batches(splits.train.subset(list(range(CALIBRATION))), BATCH)

    jobs: dict[str, Any] = {"dense": lambda model: {"codec": "none", "bytes": 4 * 272_474}}
    if given.nncodec is None:
        sys.stderr.write("NNCodec is left out: say where its interpreter is by --nncodec\n")
    for size in (*reversed(SIZES), *SMALL):
        qp = dict(zip(SIZES, QPS, strict=True)).get(size)
        jobs[f"calibrated-{size}"] = partial(ours, dense, size, taken)
        jobs[f"free-{size}"] = partial(ours, dense, size, None)
        if qp is not None and given.nncodec is not None:
            jobs[f"nncodec{qp}"] = partial(nncodec, given.nncodec, weights, qp)
    for size in SIZES:
        jobs[f"state-{size}"] = partial(ours, dense.state_dict(), size, None)
    rows = []
    for name, job in jobs.items():
        kept = given.journal / f"{name}.json"
        if not kept.exists():
            model = zoo.build("resnet20").eval()
            load_weights(model, weights)
            row = job(model)
            found = evaluate(model.to(memory_format=torch.channels_last), test)
            row |= {"test_accuracy": 100 - found.error, "test_loss": found.loss}
            write_atomically(kept, json.dumps(row).encode())
            print(name, row, flush=True)
        rows.append(json.loads(kept.read_text()))
    write_result(rows)


if __name__ == "__main__":
    main()
