"""Canonical polyadic decomposition of trained kernels, beside tensorly's ``parafac``.

Every kernel at every rank: the errors of ``cp_als``, ``cp_nls`` and of parafac from both of its
starts, at its default number of sweeps and at twice as many. What it takes us to reach an error of
parafac's is the time of the shortest ``cp_als`` run that does: runs of n sweeps are timed from a
start of their own, because a run's first n sweeps do not depend on how many follow. All methods
take turns, on one thread; seconds are those of the processor, so that a shared machine counts less.

    python -m benchmarks.decompose.cp --data DIRECTORY
"""

import argparse
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import tensorly
import torch
from safetensors.torch import load_file
from tensorly.decomposition import parafac
from torch import Tensor

from tensorpress.decompose import CP, cp_als, cp_nls, cp_to_tensor, max_cp_rank
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "cp_vs_tensorly.json"
KERNELS = {
    "cifar10_resnet/resnet56.safetensors": (
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer2.4.conv2",
        "layer3.0.conv1",
        "layer3.8.conv2",
    ),
    "lenet_caffe/lenet5.safetensors": ("conv1", "conv2"),
}
RANKS = (4, 8, 16, 32, 64)
PARAFAC = {
    f"{init}_{sweeps}": (init, sweeps) for sweeps in (100, 200) for init in ("svd", "random")
}
SWEEPS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 50, 60, 80, 100, 150, 200, 300)
SAME = 1e-4
"""Errors this close, relatively, count as equal."""


def timed(decompose: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and its processor seconds."""
    start = process_time()
    found = decompose()
    return found, process_time() - start


def parafac_point(kernel: Tensor, rank: int, init: str, sweeps: int) -> dict[str, float]:
    """Return the error of tensorly's ALS, and its seconds on two backends.

    ``seconds`` are those of the PyTorch backend; ``numpy_seconds`` are less at these sizes.
    """

    def run(tensor: Any) -> tuple[Any, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timed(lambda: parafac(tensor, rank, sweeps, init=init, tol=1e-8, random_state=0))

    with tensorly.backend_context("pytorch"):
        _, seconds = run(kernel)
    (weights, factors), numpy_seconds = run(kernel.numpy())
    rebuilt = cp_to_tensor(torch.from_numpy(weights), [torch.from_numpy(f) for f in factors])
    error = float((kernel - rebuilt).norm() / kernel.norm())
    return {"error": error, "seconds": seconds, "numpy_seconds": numpy_seconds}


def our_point(decompose: Callable[[], CP]) -> dict[str, float]:
    """Return what one of our decompositions measures."""
    found, seconds = timed(decompose)
    return {
        "error": found.relative_error,
        "seconds": seconds,
        "iterations": found.iterations,
        "degeneracy": found.degeneracy,
    }


def trajectory(kernel: Tensor, rank: int, target: float) -> list[dict[str, float]]:
    """Return errors and seconds of ``cp_als`` runs of growing length, until one meets a target."""
    points: list[dict[str, float]] = []
    for sweeps in SWEEPS:
        points.append(our_point(lambda n=sweeps: cp_als(kernel, rank, max_iter=n)))
        if points[-1]["error"] <= target:
            break
    return points


def measure(kernel: Tensor, rank: int, settings: dict[str, tuple[str, int]], nls: bool) -> Any:
    """Compare all methods on one kernel at one rank."""
    peers = {name: parafac_point(kernel, rank, *setting) for name, setting in settings.items()}
    point: dict[str, Any] = {"parafac": peers, "als": our_point(lambda: cp_als(kernel, rank))}
    if nls:
        point["nls"] = our_point(lambda: cp_nls(kernel, rank))
    best = min(peer["error"] for peer in peers.values())
    points = trajectory(kernel, rank, best * (1 + SAME))
    for peer in peers.values():
        reached = [p["seconds"] for p in points if p["error"] <= peer["error"] * (1 + SAME)]
        peer["our_seconds"] = min(reached) if reached else float("nan")
        peer["speedup"] = peer["seconds"] / peer["our_seconds"]
        peer["numpy_speedup"] = peer["numpy_seconds"] / peer["our_seconds"]
    point["als_over_best_parafac"] = point["als"]["error"] / best
    point["slowest_speedup"] = min(peer["speedup"] for peer in peers.values())
    return point


def kernels(data: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the trained kernels by name."""
    for file, names in KERNELS.items():
        weights = load_file(data / file)
        for name in names:
            yield f"{Path(file).stem}.{name}", weights[f"{name}.weight"].double()


def power_law_kernel() -> Tensor:
    """Return a 256×256×3×3 kernel with unfoldings of power-law spectra."""
    kernel = torch.randn(256, 256, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    falling = torch.arange(1, 257).double() ** -0.75
    return kernel * falling[:, None, None, None] * falling[:, None, None]


def main() -> None:
    """Measure every kernel at every rank and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("TENSORPRESS_DATA"))
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cp_nls(torch.randn(8, 8, 3, 3), 4)
    results: dict[str, Any] = {
        "settings": {"tol_parafac": 1e-8, "same": SAME, "seed": 0, "time": "processor seconds"},
        "versions": {
            "torch": torch.__version__,
            "tensorly": tensorly.__version__,
            "numpy": np.__version__,
        },
        "device": f"{platform.machine()} CPU, 1 thread (OMP_NUM_THREADS=1)",
        "points": {},
    }
    for name, kernel in kernels(arguments.data):
        for rank in (r for r in arguments.ranks if r <= max_cp_rank(kernel.shape)):
            point = measure(kernel, rank, PARAFAC, nls=True)
            results["points"][f"{name}, rank {rank}"] = point
            print(name, rank, json.dumps(point), flush=True)
    large = measure(power_law_kernel(), 64, {"svd_100": ("svd", 100)}, nls=False)
    results["points"]["256×256×3×3 of power-law spectra, rank 64"] = large
    print("large", json.dumps(large), flush=True)
    write_atomically(RESULT, json.dumps(results, indent=1, ensure_ascii=False).encode() + b"\n")


if __name__ == "__main__":
    main()
