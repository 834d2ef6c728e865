"""Press networks that others wrote, and run them by ONNX Runtime, torch.export and torch.compile.

Every pair of a network and a way to press it is a row of ``results/architectures.json``. Rows that
are there are not made again; those that failed are.

    python -m benchmarks.models.architectures [--only "torchvision resnet18"]...
"""

import argparse
import gc
import json
import platform
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.models.outside_networks import NETWORKS, Network, awaken
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tensorpress as tp
from tensorpress.export.onnx import export_onnx
from tensorpress.export.onnx_check import check_onnx, relative_difference
from tensorpress.measure import count_macs, count_params
from tensorpress.utils.atomic_files import write_atomically

RESULTS = Path(__file__).parents[2] / "results" / "architectures.json"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxscript", "onnxruntime")
FRACTION = 0.4
RANKS: dict[str, int] = {"cp": 16, "tensor_train": 4, "tt_conv": 4}
"""What other schemes take: at a fraction of their largest ranks they are slower than the layer."""

OWN_MODULES = ("tensor_train", "tt_conv", "tt_weight")
"""Schemes of more than stock layers: compiled in every network, of the others the first."""

FULL = "full rank"


def ways(network: Network) -> tuple[str, ...]:
    """Return the rows of a network: its schemes, all of them under a budget, and full rank."""
    return (*network.schemes, f"auto, {network.budget}", FULL)


def plan_for(way: str, network: Network, model: nn.Module, x: Tensor) -> tp.Plan:
    """Return the plan of a row."""
    if way.startswith("auto"):
        return tp.plan(model, x, budget=network.budget, targets=network.targets)
    scheme = "channel_svd" if way == FULL else way
    ranks = RANKS.get(scheme, FRACTION)
    plan = tp.plan(model, x, scheme=scheme, ranks=ranks, targets=network.targets)
    return at_full_rank(plan) if way == FULL else plan


def at_full_rank(plan: tp.Plan) -> tp.Plan:
    """Return a plan with the ranks at which every layer is exact."""
    layers = (replace(x, ranks=x.method.largest_ranks(x.spec)) for x in plan.layers)
    return replace(plan, layers=tuple(layers))


def row_of(way: str, network: Network) -> dict[str, Any]:
    """Press a network and measure what it has become."""
    torch.manual_seed(0)
    model, x = awaken(network.build(), network.inputs), network.inputs()
    seconds: dict[str, float] = {}
    plan = timed(seconds, "plan", lambda: plan_for(way, network, model, x))
    pressed = timed(seconds, "press", lambda: tp.press(model, plan))
    expected, found = outputs(model, x), outputs(pressed, x)
    if [y.shape for y in found] != [y.shape for y in expected]:
        raise AssertionError("the outputs have other shapes")
    if not all(bool(y.isfinite().all()) for y in found):
        raise AssertionError("an output is not finite")
    change = differ(found, expected)
    if not change:
        raise AssertionError("pressing has changed nothing")
    if plan.params != count_params(pressed):
        raise AssertionError(f"{plan.params} parameters planned, {count_params(pressed)} found")
    row: dict[str, Any] = {
        "schemes": dict(Counter(layer.scheme for layer in plan.layers)),
        "pressed": len(plan.layers),
        "kept": dict(Counter(map(reason, plan.unpressed.values())).most_common()),
        "params": [plan.dense_params, plan.params],
        "macs": [count_macs(model, [x]), count_macs(pressed, [x])],
        "planned_macs": plan.macs,
        "change": change,
    }
    if way != FULL:
        row |= exported(pressed, x, seconds)
    if way == network.schemes[0] or way in OWN_MODULES:
        row["compile"] = compiled(pressed, x, way == network.inductor, seconds)
    return row | {"seconds": {key: round(value, 1) for key, value in seconds.items()}}


def exported(pressed: nn.Module, x: Tensor, seconds: dict[str, float]) -> dict[str, Any]:
    """Run a model by ONNX Runtime and as an exported program; return the differences."""
    expected = outputs(pressed, x)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        path = Path(folder) / "model.onnx"
        file = timed(seconds, "onnx", lambda: export_onnx(pressed, x, path))
        onnx = max(check_onnx(pressed, x, path), check_onnx(pressed, x[:1], path))
    obstacles = [str(w.message).partition(": ")[2] for w in said if "batch size" in str(w.message)]
    program = timed(seconds, "export", lambda: torch.export.export(pressed, (x,)).module())
    return {
        "onnx": {
            "difference": onnx,
            "bytes": file.bytes,
            "any_batch": file.any_batch,
            **({"obstacle": obstacles[0]} if obstacles else {}),
        },
        "export": {"difference": differ(outputs(program, x), expected)},
    }


def compiled(
    pressed: nn.Module, x: Tensor, generate: bool, seconds: dict[str, float]
) -> dict[str, Any]:
    """Run a compiled model; return the difference and how it was compiled."""
    backend = "inductor" if generate else "aot_eager"
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model = torch.compile(pressed, backend=backend)
    found = timed(seconds, "compile", lambda: outputs(model, x))
    return {
        "difference": differ(found, outputs(pressed, x)),
        "backend": backend,
        "graph_breaks": sum(torch._dynamo.utils.counters["graph_break"].values()),
    }


def outputs(model: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    """Return the tensors of a model's output."""
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor)]


def differ(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest relative difference of several outputs."""
    return max(relative_difference(a, b) for a, b in zip(found, expected, strict=True))


def reason(text: str) -> str:
    """Return a reason to keep a layer without the numbers and names of that one layer."""
    if text.startswith("ranks ("):
        return f"{text.rpartition(': ')[2]} at these ranks"
    return re.sub(r"'[^']*\.[^']*'", "…", text.rpartition(" cannot be pressed: ")[2])


def timed(seconds: dict[str, float], key: str, do: Callable[[], Any]) -> Any:
    """Do something and note down how long it took."""
    start = time.perf_counter()
    found = do()
    seconds[key] = time.perf_counter() - start
    return found


def main() -> None:
    """Make the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(NETWORKS), default=[])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    if arguments.out.exists():
        rows = json.loads(arguments.out.read_text())["rows"]
    for name in arguments.only or NETWORKS:
        network = NETWORKS[name]
        for way in ways(network):
            if "failed" not in rows.get(name, {}).get(way, {"failed": ""}):
                continue
            try:
                row = row_of(way, network)
            except Exception as error:  # a row that says what went wrong
                row = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
            rows.setdefault(name, {})[way] = row
            text = json.dumps({"settings": settings(), "rows": rows}, indent=1, ensure_ascii=False)
            write_atomically(arguments.out, f"{text}\n".encode())
            print(name, way, json.dumps(row, ensure_ascii=False), flush=True)
            gc.collect()


def settings() -> dict[str, Any]:
    """Return what the rows were made with."""
    return {
        "seed": 0,
        "batch": 2,
        "fraction": FRACTION,
        "ranks": RANKS,
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} thread",
        "versions": {name: version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    main()
