"""EVBMF ranks and decompositions of whole networks, beside tensorly's and beside a floor.

Ours is ``press_layer(layer, "tucker2", "evbmf")``: ranks, Tucker-2, the layers in its place. Theirs
is the numpy EVBMF in common use and tensorly's ``partial_tucker``, its PyTorch backend and
defaults, at the ranks ours found; of a Linear its truncated SVD. The floor is one Gram product and
one ``eigh`` in float64 for each unfolding (a matrix has one) and nothing else.

Every distinct weight shape is measured once and counts as often as it occurs. The sides take turns
in one process on one thread; seconds are those of the processor, because the machine is shared. A
shape that is already in the result file is not measured again: an interrupted run goes on.

    OMP_NUM_THREADS=1 python -m benchmarks.decompose.decompose [--data DIRECTORY]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import tensorly
import torch
from benchmarks.decompose import decompose_cases as cases
from benchmarks.decompose.decompose_cases import Shape
from tensorly.decomposition import tensor_train
from torch import Tensor, nn

from tensorpress.decompose import attainable_tt_ranks, largest_tt_ranks, tt_svd
from tensorpress.decompose.svd import truncated_svd
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.tt_matrix import TrainOfMatrix
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "decompose" / "decompose.json"
TURNS = 3
LONG = 10.0
"""Seconds above which a side of theirs has only one turn."""

HUGE = (4096, 25088)
MEMORY = ((512, 512, 3, 3), HUGE)
LOW_RANKS = ((1024, 16), (1024, 64), (2048, 64), (2048, 128))
TT_RANK = 4
TRAINS = {
    "default modes": {},
    "Novikov's modes": {"row_modes": (4,) * 6, "column_modes": (2, 7, 8, 8, 7, 4)},
}

LARGEST_FULL = 10_000
"""Columns above which the public EVBMF is only timed with a thin SVD: it would need 2.5 GB."""


def name_of(shape: Shape) -> str:
    """Return a shape as it is written.

    Examples
    --------
    >>> name_of((64, 3, 7, 7))
    '64×3×7×7'
    """
    return "×".join(map(str, shape))


def take_turns(ours: dict[str, Callable], theirs: dict[str, Callable]) -> tuple[dict, dict]:
    """Return the processor seconds of every turn of every side, and what each side found."""
    sides = ours | theirs
    times: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, Any] = {}
    for _ in range(TURNS):
        for name, side in sides.items():
            if name in theirs and times[name] and times[name][0] > LONG:
                continue
            start = process_time()
            found[name] = side()
            times[name].append(process_time() - start)
    return times, found


def measure_layer(weight: Tensor) -> dict[str, Any]:
    """Measure EVBMF ranks and Tucker-2 of one weight, on every side."""
    layer, shape = cases.layer_of(weight), tuple(weight.shape)
    pressed = press_layer(layer, "tucker2", "evbmf")
    ranks = pressed.ranks
    theirs: dict[str, Callable] = {"evbmf_thin": lambda: cases.numpy_evbmf(weight, thin=True)}
    if max(weight.flatten(1).shape) <= LARGEST_FULL:
        theirs["evbmf"] = lambda: cases.numpy_evbmf(weight, thin=False)
    if cases.is_matrix(shape):
        theirs["svd"] = cases.tensorly_svd(weight.flatten(1), ranks[0])
    if len(shape) > 2:
        theirs["tucker"] = cases.tensorly_tucker(weight, ranks)
    ours = {
        "ours": lambda: press_layer(layer, "tucker2", "evbmf"),
        "floor": cases.floor(weight),
    }
    times, found = take_turns(ours, theirs)
    errors = {"ours": pressed.relative_error}
    if "tucker" in found:
        errors["tucker"] = cases.tucker_error(weight, found["tucker"])
    if "svd" in found:
        errors["svd"] = cases.svd_error(weight, found["svd"])
    return {"ranks": ranks, "numpy_ranks": found["evbmf_thin"], "errors": errors, "seconds": times}


def measure_fixed(shape: Shape) -> dict[str, Any]:
    """Measure Tucker-2, SVD and TT-SVD of one kernel at half of the largest ranks."""
    weight = cases.trained_like(shape)
    layer = cases.layer_of(weight)
    result = {}
    ranks = tuple(press_layer(layer, "tucker2", 0.5).ranks)
    theirs = cases.tensorly_tucker(weight, ranks)
    times, found = take_turns(
        {"ours": lambda: press_layer(layer, "tucker2", 0.5), "floor": cases.floor(weight)},
        {"tensorly": theirs},
    )
    errors = {
        "ours": found["ours"].relative_error,
        "tensorly": cases.tucker_error(weight, found["tensorly"]),
    }
    result["tucker2"] = {"ranks": ranks, "errors": errors, "seconds": times}

    unfolding = weight.flatten(1)
    rank = min(unfolding.shape) // 2
    times, found = take_turns(
        {"ours": lambda: truncated_svd(unfolding, rank), "floor": cases.floor(weight, modes=1)},
        {"tensorly": cases.tensorly_svd(unfolding, rank)},
    )
    errors = {
        "ours": found["ours"].relative_error,
        "tensorly": cases.svd_error(weight, found["tensorly"]),
    }
    result["svd"] = {"ranks": (rank,), "errors": errors, "seconds": times}
    if not cases.is_matrix(shape):
        result["tt_svd"] = measure_train(weight)
    return result


def measure_quarter(shape: Shape, *, flat: bool) -> dict[str, Any]:
    """Measure Tucker-2 at a quarter of the ranks, of a falling or of a flat spectrum."""
    weight = torch.randn(shape) if flat else cases.trained_like(shape)
    layer, ranks = cases.layer_of(weight), (shape[1] // 4, shape[0] // 4)
    times, results = take_turns(
        {"ours": lambda: press_layer(layer, "tucker2", ranks), "floor": cases.floor(weight)},
        {"tensorly": cases.tensorly_tucker(weight, ranks)},
    )
    errors = {
        "ours": results["ours"].relative_error,
        "tensorly": cases.tucker_error(weight, results["tensorly"]),
    }
    return {"tucker2": {"ranks": ranks, "errors": errors, "seconds": times}}


def measure_low_rank(size: int, rank: int) -> dict[str, Any]:
    """Measure an SVD of low rank of a square matrix, beside ``torch.svd_lowrank``."""
    weight = cases.trained_like((size, size))
    layer = cases.layer_of(weight)
    times, results = take_turns(
        {
            "ours": lambda: press_layer(layer, "channel_svd", rank),
            "gram": lambda: truncated_svd(weight, rank, method="gram"),
        },
        {"svd_lowrank": lambda: torch.svd_lowrank(weight, rank)},
    )
    u, s, v = results["svd_lowrank"]
    errors = {
        "ours": results["ours"].relative_error,
        "gram": results["gram"].relative_error,
        "svd_lowrank": cases.svd_error(weight, (u, s, v.mT)),
    }
    return {"ranks": (rank,), "errors": errors, "seconds": times}


def measure_train(weight: Tensor) -> dict[str, Any]:
    """Measure TT-SVD of a kernel with its modes in the order in, height, width, out."""
    modes = weight.permute(1, 2, 3, 0).contiguous()
    half = [most // 2 for most in largest_tt_ranks(modes.shape)]
    ranks = attainable_tt_ranks(modes.shape, half)
    times, found = take_turns(
        {"ours": lambda: tt_svd(modes, ranks=ranks), "floor": cases.floor(weight)},
        {"tensorly": lambda: tensor_train(modes, [1, *ranks, 1])},
    )
    rebuilt = tensorly.tt_to_tensor([core.double() for core in found["tensorly"]])
    errors = {
        "ours": found["ours"].relative_error,
        "tensorly": float((modes - rebuilt).norm() / modes.double().norm()),
    }
    return {"ranks": ranks, "errors": errors, "seconds": times}


def measure_memory(shape: Shape, ranks: tuple[int, int]) -> dict[str, int]:
    """Return the peak resident bytes beyond the weight, each side in a process of its own."""
    module = "benchmarks.decompose.decompose_memory"
    peaks = {}
    for side in ("ours", "tensorly"):
        command = [sys.executable, "-m", module, side, name_of(shape), *map(str, ranks)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[side] = json.loads(done.stdout)["bytes"]
    return peaks


def measure_tt_layer(turns: int = 15) -> dict[str, Any]:
    """Return milliseconds of a forward pass of VGG-16's largest Linear, dense and as trains."""
    out, in_ = HUGE
    dense = nn.Linear(in_, out)
    like, spec = torch.empty(0), describe_layer(dense)
    layers: dict[str, nn.Module] = {"dense": dense}
    for name, modes in TRAINS.items():
        train = TrainOfMatrix("tensor_train", "", **modes)
        ranks = train.attainable(spec, (TT_RANK,) * (len(train.modes(spec)[0]) - 1))
        layers[name] = train.skeleton(spec, ranks, like=like)
        for parameter in layers[name].parameters():
            nn.init.normal_(parameter)
    result: dict[str, Any] = {"rank": TT_RANK, "turns": turns}
    with torch.inference_mode():
        for batch in (1, 100):
            inputs = torch.randn(batch, in_)
            times: dict[str, list[float]] = {name: [] for name in layers}
            for _ in range(turns):
                for name, layer in layers.items():
                    start = process_time()
                    layer(inputs)
                    times[name].append(1000 * (process_time() - start))
            result[f"batch_{batch}_ms"] = {name: median(taken) for name, taken in times.items()}
    return result


class Results:
    """The result file: every measurement is written as soon as there is one."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}

    def once(self, part: str, name: str, measure: Callable[[], Any]) -> None:
        """Measure what the file does not have yet."""
        held = self.values.setdefault(part, {})
        if name not in held:
            held[name] = measure()
            self.write()
            print(part, name, json.dumps(held[name]), flush=True)

    def write(self) -> None:
        """Write the file."""
        text = json.dumps(self.values, indent=1, ensure_ascii=False)
        write_atomically(RESULT, text.encode() + b"\n")


def settings() -> dict[str, Any]:
    """Return what the numbers depend on."""
    libraries = ("torch", "torchvision", "tensorly", "numpy", "scipy")
    return {
        "versions": {library: version(library) for library in libraries},
        "device": f"{platform.machine()} CPU, 1 thread",
        "seconds": f"of the processor, {TURNS} turns; theirs one turn above {LONG:.0f} s",
        "weights": {
            "seed": 0,
            "form": "Gaussian; output and input mode (of a matrix the smaller one) scaled by "
            "k^-exponent up to k = signal × size, 0 beyond, and rotated; plus Gaussian noise "
            "below which EVBMF still sees the weakest component by margin",
            "exponent": cases.EXPONENT,
            "signal": cases.SIGNAL,
            "margin": cases.MARGIN,
        },
        "published": {
            "tt_layer": "Novikov et al. 2015, Table 3, other hardware: milliseconds for 1 / 100",
            "cpu": {"dense": [16.1, 97.2], "tensor train": [1.2, 94.7]},
            "gpu": {"dense": [2.7, 33.0], "tensor train": [1.9, 12.9]},
        },
    }


def main() -> None:
    """Measure what is not measured yet, kernels before networks, small before large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("TENSORPRESS_DATA"))
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1: numpy's threads count as processor seconds too")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measure_layer(cases.trained_like((16, 16, 3, 3)))  # the first calls load libraries
    results = Results()
    networks = cases.torchvision_shapes()
    results.values["settings"] = settings()
    results.values["networks"] = {
        name: {name_of(shape): count for shape, count in shapes.items()}
        for name, shapes in networks.items()
    }
    results.once("tt_layer", name_of(HUGE), measure_tt_layer)
    if arguments.data is not None:
        for name, weight in cases.trained_kernels(Path(arguments.data)).items():
            results.once("trained", name, lambda w=weight: measure_layer(w))
    needed = Counter(cases.KERNELS) + sum(networks.values(), Counter())
    for shape in sorted(needed, key=np.prod):
        results.once("layers", name_of(shape), lambda s=shape: measure_layer(cases.trained_like(s)))
        if shape in cases.KERNELS:
            results.once("fixed", name_of(shape), lambda s=shape: measure_fixed(s))
            if not cases.is_matrix(shape):
                for kind in ("falling", "flat"):
                    results.once(
                        "quarter",
                        f"{name_of(shape)}, {kind}",
                        lambda s=shape, k=kind: measure_quarter(s, flat=k == "flat"),
                    )
        if shape in MEMORY:
            ranks = results.values["layers"][name_of(shape)]["ranks"]
            results.once("memory", name_of(shape), lambda s=shape, r=ranks: measure_memory(s, r))
    for size, rank in LOW_RANKS:
        name = f"{name_of((size, size))}, rank {rank}"
        results.once("low_rank", name, lambda s=size, r=rank: measure_low_rank(s, r))


if __name__ == "__main__":
    main()
