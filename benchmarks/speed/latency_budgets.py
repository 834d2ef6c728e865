"""Budgets of latency: how near below them pressed networks are when they are measured again.

    python -m benchmarks.speed.latency_budgets

Every network is planned in one process; another one reads the plan, presses the network and
measures it next to the dense one, by the clock on the wall.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress import load_model, plan, press
from tensorpress.measure.latency import time_passes
from tensorpress.planning.plan import Plan
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "budgets_latency.json"
BUDGETS = {
    "torchvision:resnet18": ("latency=60%", "latency=40%"),
    "torchvision:mobilenet_v2": ("latency=90%",),
    "torchvision:vgg16": ("latency=50%",),
    "torchvision:resnet50": ("latency=60%",),
    "torchvision:vit_b_16": ("latency=60%",),
}
PRECISION = 0.005
"""Standard error of the share that is measured."""


def case(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network of random weights and an image."""
    torch.manual_seed(0)
    return load_model(name).eval(), torch.randn(1, 3, 224, 224)


def planned(name: str, budget: str, path: str) -> None:
    """Plan a network, write the plan, and print the seconds that took."""
    model, x = case(name)
    started = perf_counter()
    plan(model, x, budget=budget, round_to=16).save(path)
    print(perf_counter() - started)


def measured(name: str, path: str) -> None:
    """Print what a plan costs and what the network pressed by it takes."""
    model, x = case(name)
    made = Plan.read(path)
    small = press(model, made, init="kaiming").eval()
    dense, pressed = time_passes(
        [model, small], [x], least=21, repeats=1000, seconds=180, precision=PRECISION
    )
    found = {
        "dense_ms": median(dense),
        "pressed_ms": median(pressed),
        "latency": median(b / a for a, b in zip(dense, pressed, strict=True)),
        "rounds": len(dense),
        "macs": made.macs / made.dense_macs if made.macs and made.dense_macs else None,
        "params": made.params / made.dense_params,
        "pressed_layers": len(made.layers),
        "schemes": sorted({layer.scheme for layer in made.layers}),
    }
    print(json.dumps(found))


def of_another_process(*arguments: str) -> Any:
    """Return what this script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(names: list[str]) -> None:
    """Plan and measure networks, and add them to the results."""
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results["settings"] = {
        "versions": {package: version(package) for package in ("torch", "torchvision")},
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, 1 thread",
        "time": "wall clock, median share of the dense network's in interleaved passes",
        "plan": "scheme auto, spread error, ranks of 16; batch 1, 224 × 224; random weights",
        "seed": 0,
    }
    for name in names:
        for budget in BUDGETS[name]:
            with tempfile.TemporaryDirectory() as folder:
                path = f"{folder}/plan.json"
                seconds = of_another_process("plan", name, budget, path)
                found = of_another_process("measure", name, path)
            allowed = float(budget.partition("=")[2].rstrip("%")) / 100
            found |= {"latency_over_budget": found["latency"] / allowed, "plan_seconds": seconds}
            results.setdefault(name, {})[budget] = found
            print(name, budget, json.dumps(found), flush=True)
            write_atomically(RESULT, json.dumps(results, indent=1).encode() + b"\n")


def main() -> None:
    """Measure all networks, or those that are named; or do one step for one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="?", choices=("all", "plan", "measure"), default="all")
    parser.add_argument("rest", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.step == "all":
        measure_all(arguments.rest or list(BUDGETS))
    elif arguments.step == "plan":
        planned(*arguments.rest)
    else:
        measured(*arguments.rest)


if __name__ == "__main__":
    main()
