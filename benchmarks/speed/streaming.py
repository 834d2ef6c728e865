"""Pressing of a checkpoint larger than memory, by one process and by two.

A Llama checkpoint with random weights is written tensor by tensor, and pressed by processes with
one thread each. After every few shards, a worker times the truncated SVD of one weight of each
shape, so that changes in the speed of the machine affect both; this time is not counted. Results
are CPU seconds, which other work on the machine hardly changes, and elapsed time.

    python -m benchmarks.speed.streaming --folder /tmp/stream
"""

import argparse
import hashlib
import json
import logging
import os
import platform
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch

import tensorpress
from tensorpress.checkpoints import press_checkpoint
from tensorpress.checkpoints.load import model_from_config
from tensorpress.checkpoints.meta_model import tied_names
from tensorpress.checkpoints.press_shard import ShardPress
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.checkpoints.safetensors_writer import (
    divide_into_shards,
    open_shard_writer,
    write_index,
)
from tensorpress.decompose.svd import truncated_svd
from tensorpress.planning import Plan
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.progress import ByteProgress

RESULT = Path(__file__).parents[2] / "results" / "streaming.json"
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
HOW: dict[str, Any] = {"scheme": "channel_svd", "ranks": 0.25}
SHARD_BYTES = 750_000_000
FLOOR_EVERY = 3


def make(folder: Path, layers: int) -> None:
    """Write the dense checkpoint, tensor by tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**MODEL, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    model = model_from_config(folder)
    state = model.state_dict(keep_vars=True)
    tensors = {name: state[name] for name in tied_names(model)}
    shards = divide_into_shards(tensors, SHARD_BYTES)
    generator = torch.Generator().manual_seed(0)
    for file, part in shards.items():
        with open_shard_writer(folder / file, part) as shard:
            for name, tensor in part.items():
                random = 0.02 * torch.randn(tensor.shape, generator=generator)
                shard.write(name, random if tensor.ndim > 1 else torch.ones(tensor.shape))
    write_index(folder, shards)


class FloorTimer:
    """Times the truncated SVD of one weight of every shape, between shards."""

    def __init__(self) -> None:
        self.shards, self.cpu, self.wall = 0, 0.0, 0.0
        self.times: dict[tuple[int, int, int], list[float]] = {}

    def install(self) -> None:
        """Measure after every few shards of this process."""
        press = ShardPress.press

        def pressing(work: ShardPress, shard: str, progress: ByteProgress) -> int:
            size = press(work, shard, progress)
            if self.shards % FLOOR_EVERY == 0:
                self.measure(work)
            self.shards += 1
            return size

        ShardPress.press = pressing  # type: ignore[method-assign]

    def measure(self, work: ShardPress) -> None:
        """Decompose one weight of each shape."""
        began, began_cpu = perf_counter(), process_time()
        for rows, columns, rank in {
            (*route.layer.shape, *route.layer.ranks)
            for route in work.routes.values()
            if route.layer
        }:
            weight = 0.02 * torch.randn(rows, columns)
            start = process_time()
            truncated_svd(weight, rank)
            self.times.setdefault((rows, columns, rank), []).append(process_time() - start)
        self.cpu += process_time() - began_cpu
        self.wall += perf_counter() - began


def work(source: Path, out: Path) -> None:
    """Press as one of several processes, and print time and memory."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    floor = FloorTimer()
    floor.install()
    began, began_cpu = perf_counter(), process_time()
    press_checkpoint(source, out, **HOW)
    print(
        json.dumps(
            {
                "seconds": perf_counter() - began - floor.wall,
                "cpu_seconds": process_time() - began_cpu - floor.cpu,
                "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                "shards": floor.shards,
                "floor": [[*key, median(times)] for key, times in floor.times.items()],
            }
        )
    )


def run(source: Path, out: Path, processes: int) -> dict[str, Any]:
    """Press by several processes, and return time and memory."""
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, "--worker", str(source), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(processes)
    ]
    results = [json.loads(worker.communicate()[0].splitlines()[-1]) for worker in workers]
    counts = Counter((*layer.shape, *layer.ranks) for layer in Plan.read(out / "plan.json").layers)
    floor = sum(
        count * median(t for w in results for *key, t in w["floor"] if tuple(key) == shape)
        for shape, count in counts.items()
    )
    seconds = max(worker["seconds"] for worker in results)
    cpu = sum(worker["cpu_seconds"] for worker in results)
    size = sum(stored.bytes for stored in TensorFiles(source).tensors.values())
    return {
        "processes": processes,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "svd_cpu_seconds": round(floor, 1),
        "cpu_over_svd": round(cpu / floor, 3),
        "mb_per_second": round(size / 1e6 / seconds, 2),
        "mb_per_cpu_second": round(size / 1e6 / cpu, 2),
        "svd_mb_per_cpu_second": round(size / 1e6 / floor, 2),
        "peak_bytes": [worker["peak_bytes"] for worker in results],
        "shards_a_process": [worker["shards"] for worker in results],
        "load_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
        "sha256": digest(out),
    }


def digest(folder: Path) -> str:
    """Return a digest of all shards."""
    result = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            result.update(hashlib.file_digest(file, "sha256").digest())
    return result.hexdigest()


def start(description: str | None, work: Callable[[Path, Path], None]) -> tuple[Path, int]:
    """Run a worker and exit, or return the folder and number of layers of the dense checkpoint."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/stream"))
    parser.add_argument("--layers", type=int, default=MODEL["num_hidden_layers"])
    parser.add_argument("--worker", type=Path, nargs=2, metavar=("SOURCE", "OUT"))
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker)
        parser.exit()
    source = arguments.folder / f"dense-{arguments.layers}"
    if not (source / "model.safetensors.index.json").exists():
        make(source, arguments.layers)
    return source, arguments.layers


def main() -> None:
    """Write the checkpoint, press it by one process and by two, and write the results."""
    source, layers = start(__doc__, work)
    files = TensorFiles(source)
    sizes = [stored.bytes for stored in files.tensors.values()]
    runs = [run(source, source.with_name(f"pressed-{n}"), n) for n in (1, 2)]
    result = {
        "model": {**MODEL, "num_hidden_layers": layers},
        "bytes": sum(sizes),
        "largest_tensor_bytes": max(sizes),
        "shards": len(files.files),
        "recipe": HOW,
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores, 1 thread a process",
        "versions": {"torch": torch.__version__, "tensorpress": tensorpress.__version__},
        "runs": runs,
        "same_files": len({run["sha256"] for run in runs}) == 1,
    }
    write_atomically(RESULT, json.dumps(result, indent=1).encode() + b"\n")
    print(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
