"""What share of the saved multiplications each runtime saves as time: networks, layers, ranks.

    python -m benchmarks.speed.runtimes [networks] [layers] [ranks]

Three measurements of one image or sequence on one thread, dense and pressed in turns, by the
processor time of the thread that computes:

- networks: VGG-16 and ResNet-50 at 30 % of their MACs by each scheme;
- layers: single layers of common shapes, at a quarter of their MACs by each scheme;
- ranks: one convolution at every rank from 33 to 64, to see which ranks a runtime likes.

Weights are random, as times do not depend on them. The runtimes are torch, torch.compile,
onnxruntime and OpenVINO, all in float32.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean, median
from time import thread_time
from typing import Any

import torch
from benchmarks.speed.inference_time import network
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.measure.latency import time_passes
from tensorpress.measure.runtimes import in_runtime
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "runtimes.json"
RUNTIMES = ("torch", "compiled", "onnxruntime", "openvino")
NETWORKS = ("VGG-16", "ResNet-50")
SCHEMES = ("channel_svd", "spatial_svd", "tucker2", "auto")
BUDGET = "macs=30%"
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "3×3, 64 → 64 at 56²": (nn.Conv2d(64, 64, 3, padding=1), (1, 64, 56, 56)),
    "3×3, 128 → 128 at 28²": (nn.Conv2d(128, 128, 3, padding=1), (1, 128, 28, 28)),
    "3×3, 256 → 256 at 14²": (nn.Conv2d(256, 256, 3, padding=1), (1, 256, 14, 14)),
    "3×3, 512 → 512 at 7²": (nn.Conv2d(512, 512, 3, padding=1), (1, 512, 7, 7)),
    "1×1, 256 → 1024 at 14²": (nn.Conv2d(256, 1024, 1), (1, 256, 14, 14)),
    "Linear, 768 → 3072, 128 tokens": (nn.Linear(768, 3072), (1, 128, 768)),
    "Linear, 4096 → 4096, 1 token": (nn.Linear(4096, 4096), (1, 1, 4096)),
}
LAYER_SCHEMES = ("channel_svd", "spatial_svd", "tucker2", "cp", "tt_conv", "tensor_train")
RANKS = range(33, 65)
STEPS = (4, 8, 16)
EFFORT: dict[str, Any] = {"least": 9, "repeats": 41, "seconds": 30.0, "precision": 0.01}


def ready(model: nn.Module, x: Tensor, runtime: str) -> nn.Module:
    """Return a model as a runtime runs it."""
    if runtime == "compiled":
        return torch.compile(model)  # type: ignore[no-any-return]
    return in_runtime(model, x, runtime)  # type: ignore[arg-type]


def times(models: list[nn.Module], x: Tensor, runtime: str) -> list[float]:
    """Return the median milliseconds of models that take turns."""
    torch.compiler.reset()
    runs = [ready(model, x, runtime) for model in models]
    return [median(one) for one in time_passes(runs, [x], clock=thread_time, **EFFORT)]


def measure(dense: nn.Module, pressed: dict[str, nn.Module], x: Tensor) -> dict[str, Any]:
    """Return milliseconds by runtime of a dense model and of pressed ones."""
    rows: dict[str, Any] = {}
    for runtime in RUNTIMES:
        dense_ms, *others = times([dense, *pressed.values()], x, runtime)
        rows[runtime] = {"dense": dense_ms, **dict(zip(pressed, others, strict=True))}
        print(
            "   ", runtime, {name: round(ms, 3) for name, ms in rows[runtime].items()}, flush=True
        )
    return rows


def measure_networks() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield times of networks, with their plans."""
    x = torch.randn(1, 3, 224, 224)
    for name in NETWORKS:
        print(name, flush=True)
        dense = network(name)
        plans = {s: tp.plan(dense, x, scheme=s, budget=BUDGET, round_to=16) for s in SCHEMES}
        pressed = {s: tp.press(dense, plan, init="kaiming").eval() for s, plan in plans.items()}
        fewer = {s: (plan.dense_macs or 0) / (plan.macs or 1) for s, plan in plans.items()}
        yield name, {"fewer_macs": fewer, "ms": measure(dense, pressed, x)}


def measure_layers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield times of single layers."""
    for name, (layer, shape) in LAYERS.items():
        print(name, flush=True)
        dense, x = nn.Sequential(layer).eval(), torch.randn(shape)
        pressed, fewer = {}, {}
        for scheme in LAYER_SCHEMES:
            try:
                plan = tp.plan(dense, x, scheme=scheme, budget="macs=25%", allocation="uniform")
            except tp.InvalidArgumentError:
                continue  # the scheme has no form of this layer, or none as small
            if plan.macs and plan.dense_macs and plan.layers:
                pressed[scheme] = tp.press(dense, plan, init="kaiming").eval()
                fewer[scheme] = plan.dense_macs / plan.macs
        yield name, {"fewer_macs": fewer, "ms": measure(dense, pressed, x)}


def measure_ranks() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield times of layers at consecutive ranks."""
    for name in ("3×3, 128 → 128 at 28²", "Linear, 768 → 3072, 128 tokens"):
        print(name, flush=True)
        layer, shape = LAYERS[name]
        pressed = {str(rank): tp.press_layer(layer, "channel_svd", rank).eval() for rank in RANKS}
        rows = {}
        for runtime in RUNTIMES:
            if (
                runtime != "compiled"
            ):  # which has one kernel for all ranks, after several compilations
                ms = times(list(pressed.values()), torch.randn(shape), runtime)
                rows[runtime] = dict(zip(pressed, ms, strict=True))
        yield name, {"ms": rows}


PARTS = {"networks": measure_networks, "layers": measure_layers, "ranks": measure_ranks}


def share_of_theory(row: dict[str, Any], runtime: str, scheme: str) -> float:
    """Return the speed-up over what the saved multiplications would give."""
    ms = row["ms"][runtime]
    return float(ms["dense"] / ms[scheme] / row["fewer_macs"][scheme])


def gain_of_rounding(ms: dict[str, float], step: int) -> float:
    """Return the mean time at ranks that are no multiple of a step, over that at the next one."""
    ratios = [
        ms[str(rank)] / ms[str(-(-rank // step) * step)] for rank in RANKS if rank % step != 0
    ]
    return geometric_mean(ratios)


def runtimes_table() -> str:
    """Return the tables of networks, layers and ranks."""
    results = json.loads(RESULT.read_text())
    settings = results["settings"]
    lines = [
        f"| network | runtime | dense ms | {' | '.join(SCHEMES)} |",
        f"|---|---|--:|{'--:|' * len(SCHEMES)}",
    ]
    for name, row in results["networks"].items():
        fewer = [f"{row['fewer_macs'][scheme]:.1f}× fewer MACs" for scheme in SCHEMES]
        lines.append(f"| {name} | | | {' | '.join(fewer)} |")
        for runtime, ms in row["ms"].items():
            cells = [
                f"{ms['dense'] / ms[s]:.2f}× ({share_of_theory(row, runtime, s):.2f})"
                for s in SCHEMES
            ]
            lines.append(f"| | {runtime} | {ms['dense']:.0f} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| layer, at a quarter of its MACs | runtime | {' | '.join(LAYER_SCHEMES)} |",
        f"|---|---|{'--:|' * len(LAYER_SCHEMES)}",
    ]
    for name, row in results["layers"].items():
        for runtime in row["ms"]:
            cells = [
                f"{share_of_theory(row, runtime, s):.2f}" if s in row["fewer_macs"] else "–"
                for s in LAYER_SCHEMES
            ]
            lines.append(f"| {name} | {runtime} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| ranks 33 to 64 of | runtime | {' | '.join(f'to {step}' for step in STEPS)} |",
        f"|---|---|{'--:|' * len(STEPS)}",
    ]
    for name, row in results["ranks"].items():
        for runtime, ms in row["ms"].items():
            cells = [f"{gain_of_rounding(ms, step):.2f}×" for step in STEPS]
            lines.append(f"| {name} | {runtime} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{settings['device']}; {settings['versions']}."])


def main() -> None:
    """Measure what is asked for, and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}")
    parts = parser.parse_args().parts or list(PARTS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    packages = ("torch", "onnxruntime", "openvino")
    results["settings"] = {
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, 1 thread",
        **EFFORT,
    }
    with torch.no_grad():
        for part in parts:
            for name, row in PARTS[part]():
                results.setdefault(part, {})[name] = row
                write_atomically(RESULT, json.dumps(results, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
