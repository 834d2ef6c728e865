"""Where the time of pressed networks goes: by operation, and by oneDNN's own account.

    python -m benchmarks.speed.inference_profile

Adds to the results of inference_time.py: for each network, dense and pressed, the milliseconds of
a forward pass by kind of operation, the rate at which convolutions multiply, and what of them
is spent on reordering tensors. Of every operation the fastest of several passes counts, by the
processor time of the thread: torch.profiler reads the clock on the wall, which other work on the
machine adds to.
"""

import argparse
import json
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import thread_time
from typing import Any

import torch
from benchmarks.speed.inference_time import NETWORKS, RESULT, images, input_for, network, ready
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tensorpress import plan, press
from tensorpress.utils.atomic_files import write_atomically

PASSES = 15
BUDGETS = ("macs=50%", "macs=25%")
WAYS = ("contiguous", "channels_last")
KINDS = {
    "linear": "linear",
    "batch_norm": "batch norm",
    "relu_": "ReLU",
    "max_pool2d": "pooling",
    "adaptive_avg_pool2d": "pooling",
    "add_": "addition",
}
REORDER = re.compile(r"exec,cpu,reorder,.*,([\d.]+)$", re.MULTILINE)


class Clocked(TorchDispatchMode):
    """Notes the kind of every operation and the milliseconds it takes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note it."""
        started = thread_time()
        found = func(*args, **(kwargs or {}))
        taken = 1000 * (thread_time() - started)
        name = func.overloadpacket.__name__
        kind = KINDS.get(name, "other")
        if name == "conv2d":
            kind = "1×1 convolution" if args[1].shape[2:] == (1, 1) else "spatial convolution"
        self.noted.append((kind, taken))
        return found


def by_kind(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Return the milliseconds of a forward pass by kind of operation."""
    passes = []
    for _ in range(PASSES):
        with Clocked() as clocked:
            model(x)
        passes.append(clocked.noted)
    found: dict[str, float] = defaultdict(float)
    for same in zip(*passes, strict=True):
        found[same[0][0]] += min(taken for _, taken in same)
    return found


def macs_by_kind(model: nn.Module, x: Tensor) -> Counter[str]:
    """Return the multiply-accumulates of a batch by kind of operation."""
    found: Counter[str] = Counter()

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        kind = "linear"
        if isinstance(layer, nn.Conv2d):
            kind = "1×1 convolution" if layer.kernel_size == (1, 1) else "spatial convolution"
        found[kind] += output.numel() * layer.weight[0].numel()

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    model(x)
    for hook in hooks:
        hook.remove()
    return found


def reorders(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Return how many tensors oneDNN reorders in a pass, and the milliseconds that takes."""
    passes = []
    for _ in range(PASSES):
        with captured() as lines, torch.backends.mkldnn.verbose(1):
            model(x)
        passes.append([float(ms) for ms in REORDER.findall("".join(lines))])
    return {"count": len(passes[0]), "ms": sum(map(min, zip(*passes, strict=True)))}


@contextmanager
def captured() -> Iterator[list[str]]:
    """Yield a list that holds, after the block, what was written to the standard output."""
    lines: list[str] = []
    before = os.dup(1)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 1)
        try:
            yield lines
        finally:
            os.dup2(before, 1)
            os.close(before)
            file.seek(0)
            lines.append(file.read())


def where_time_goes(model: nn.Module, way: str) -> dict[str, Any]:
    """Return the time of one image by kind of operation, and what convolutions multiply in it."""
    run, x = ready(model, way), input_for(way, 1)
    with torch.inference_mode():
        macs = macs_by_kind(run, x)
        times = by_kind(run, x)
        moved = reorders(run, x)
    rows = {
        kind: {"ms": ms}
        | ({"macs": macs[kind], "gmacs_per_second": macs[kind] / ms / 1e6} if macs[kind] else {})
        for kind, ms in sorted(times.items())
    }
    return {"total_ms": sum(times.values()), "reorders": moved, "operations": rows}


def main() -> None:
    """Profile all networks, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    torch.set_num_threads(1)
    for name in parser.parse_args().networks:
        dense = network(name)
        models = {"dense": dense}
        for budget in BUDGETS:
            models[budget] = press(dense, plan(dense, images(1), budget=budget), init="kaiming")
        found = {
            way: {label: where_time_goes(model.eval(), way) for label, model in models.items()}
            for way in WAYS
        }
        results = json.loads(RESULT.read_text())
        results[name]["profile"] = found
        write_atomically(RESULT, json.dumps(results, indent=1).encode() + b"\n")
        print(name, json.dumps(found, indent=1, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
