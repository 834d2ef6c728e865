"""Pressing of a checkpoint block by block with calibration, in less memory than its size.

A Llama checkpoint with random weights is written tensor by tensor, and pressed at fixed ranks
on random tokens, by one process with one thread: once without interruption, and once killed at a
third and at two thirds of its blocks and started again. Its CPU seconds are compared to those of
the minimum work: for each block, a forward pass of the dense and one of the pressed model, and for
each layer, the factorization of its inputs' moments and the eigenvectors of its responses' moments.

    python -m benchmarks.speed.streaming_calibration --folder /tmp/stream
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any

import torch
from benchmarks.speed.streaming import MODEL, digest, start
from torch import Tensor

import tensorpress
from tensorpress.calibrate.batches import collect_batches
from tensorpress.checkpoints import press_checkpoint
from tensorpress.checkpoints.load import model_from_config
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.checkpoints.streamed_model import StreamedModel
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "streaming-calibration.json"
HOW: dict[str, Any] = {
    "scheme": "channel_svd",
    "ranks": 0.25,
    "targets": ["model.layers.*"],
}
EXAMPLES, TOKENS = 32, 512


def batches() -> list[Tensor]:
    """Return random tokens in batches of one example."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(str(MODEL["vocab_size"])), (EXAMPLES, TOKENS), generator=random)
    return list(tokens.split(1))


def work(source: Path, out: Path) -> None:
    """Press, and print time and memory."""
    torch.set_num_threads(1)
    began, began_cpu = perf_counter(), process_time()
    press_checkpoint(source, out, calibration=batches(), **HOW)
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    times = {"seconds": perf_counter() - began, "cpu_seconds": process_time() - began_cpu}
    print(json.dumps({**times, "peak_bytes": 1024 * int(peak)}))


def start_worker(source: Path, out: Path) -> "subprocess.Popen[str]":
    """Start a process that presses."""
    command = [sys.executable, "-m", "benchmarks.speed.streaming_calibration", "--worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    paths = [str(source), str(out)]
    return subprocess.Popen([*command, *paths], stdout=subprocess.PIPE, text=True, env=environment)


def run_killed(source: Path, out: Path, layers: int) -> dict[str, Any]:
    """Press, killed twice, and return time and memory of the last process."""
    for part in (1, 2):
        process = start_worker(source, out)
        while len(list((out / ".press" / "blocks").glob("model-layers-*.json"))) < (
            part * layers // 3
        ):
            if process.poll() is not None:
                raise SystemExit(f"the process ended before block {part * layers // 3}")
            sleep(0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return run(source, out)


def run(source: Path, out: Path) -> dict[str, Any]:
    """Press to the end, and return time and memory."""
    output, _ = start_worker(source, out).communicate()
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def floor(source: Path, layers: int) -> dict[str, float]:
    """Return the CPU seconds of the minimum work."""
    torch.set_num_threads(1)
    model, files = model_from_config(source), TensorFiles(source)
    names = {name: name for name in files.tensors}
    streamed = StreamedModel(
        model, files, names, collect_batches(batches()[:4], torch.nn.Identity())
    )
    with streamed.open(1) as stage, torch.no_grad():
        began = process_time()
        for place, shape in enumerate(streamed.shapes):
            stage.run(place, torch.randn(shape))
        forward = 2 * (process_time() - began) * EXAMPLES / len(streamed.shapes)
        linears = [m for m in stage.module.modules() if isinstance(m, torch.nn.Linear)]
    decompositions = 0.0
    for linear in linears:
        inputs, least = linear.in_features, min(linear.weight.shape)
        second = torch.eye(inputs, dtype=torch.float64) + torch.rand(inputs, inputs).double()
        second, responses = second @ second.mT, torch.rand(least, least).double()
        responses = responses @ responses.mT
        began = process_time()
        torch.linalg.cholesky_ex(second)
        torch.linalg.eigh(responses)
        decompositions += process_time() - began
    return {"forward": layers * forward, "decompositions": layers * decompositions}


def main() -> None:
    """Write the checkpoint, press it, killed and not, and write the results."""
    source, layers = start(__doc__, work)
    outs = [source.with_name(name) for name in ("calibrated", "calibrated-killed")]
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)
    whole, killed = run(source, outs[0]), run_killed(source, outs[1], layers)
    least = floor(source, layers)
    result = {
        "model": {**MODEL, "num_hidden_layers": layers},
        "bytes": sum(stored.bytes for stored in TensorFiles(source).tensors.values()),
        "tokens": EXAMPLES * TOKENS,
        "recipe": HOW,
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores, 1 thread",
        "versions": {"torch": torch.__version__, "tensorpress": tensorpress.__version__},
        "whole": whole,
        "after_two_kills": killed,
        "floor_cpu_seconds": least,
        "cpu_over_floor": whole["cpu_seconds"] / sum(least.values()),
        "same_files": digest(outs[0]) == digest(outs[1]),
    }
    write_atomically(RESULT, json.dumps(result, indent=1).encode() + b"\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
