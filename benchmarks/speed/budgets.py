"""Budgets of parameters, bytes and MACs: what pressed networks have of what they may have.

    python -m benchmarks.speed.budgets

Five networks are planned with scheme="auto" for half of each, pressed without computing anything,
and counted anew, independently of the plan. Budgets of measured latency are in latency_budgets.py.
"""

import argparse
import json
import platform
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from tensorpress import load_model, plan
from tensorpress.measure import count_macs, count_params
from tensorpress.press.press import build_skeleton
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "budgets.json"
KINDS = ("params", "bytes", "macs")
SHARE = 50
IMAGE, SMALL = (1, 3, 224, 224), (1, 3, 32, 32)

NETWORKS: dict[str, tuple[int, ...]] = {
    "resnet56": SMALL,
    "torchvision:resnet18": IMAGE,
    "torchvision:mobilenet_v2": IMAGE,
    "torchvision:vit_b_16": IMAGE,
    "timm:efficientnet_b0": IMAGE,
}


def held_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    return sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()])


COUNTS: dict[str, Callable[[nn.Module, Tensor], int]] = {
    "params": lambda model, _: count_params(model),
    "bytes": lambda model, _: held_bytes(model),
    "macs": lambda model, x: count_macs(model, [x]),
}


def measured(name: str, shape: tuple[int, ...]) -> list[dict[str, object]]:
    """Return a row for each kind of budget."""
    torch.manual_seed(0)
    model, x = load_model(name).eval(), torch.zeros(shape)
    rows = []
    for kind in KINDS:
        started = perf_counter()
        made = plan(model, x, budget=f"{kind}={SHARE}%")
        seconds = perf_counter() - started
        count = COUNTS[kind]
        dense = count(model, x)
        reached = count(build_skeleton(deepcopy(model), made), x)
        row = {
            "network": name,
            "kind": kind,
            "dense": dense,
            "allowed": SHARE * dense // 100,
            "reached": reached,
            "reached_over_allowed": reached / (SHARE / 100 * dense),
            "pressed_layers": len(made.layers),
            "kept_layers": len(made.unpressed),
            "schemes": sorted({layer.scheme for layer in made.layers}),
            "plan_seconds": round(seconds, 2),
        }
        print(f"{name:28} {kind:7} {row['reached_over_allowed']:.4f} {seconds:7.1f} s", flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Measure all networks and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rows = [row for name, shape in NETWORKS.items() for row in measured(name, shape)]
    content = {
        "command": "python -m benchmarks.speed.budgets",
        "budget": f"{SHARE} % of the dense network, scheme auto, random weights, seed 0",
        "rows": rows,
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm")},
    }
    write_atomically(arguments.out, json.dumps(content, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
