"""How much faster VGG-16 gets by each form, at its full width and equal parameters.

Time does not depend on the weights, so they are random. The last plans are those of the recipes
that train such networks.

    python -m benchmarks.speed.form_times
"""

import json
import platform
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.accuracy.reconstruction import FORMS, SHARES, form_plan
from benchmarks.accuracy.reconstruction_table import FULL_WIDTH
from torch import nn

from tensorpress.measure.latency import time_passes
from tensorpress.models import zoo
from tensorpress.planning.plan import Plan
from tensorpress.press.press import build_skeleton
from tensorpress.runs.recipe import read_recipe
from tensorpress.runs.recipe_plan import plan_recipe
from tensorpress.utils.atomic_files import write_atomically

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "results" / "form_times.json"
BATCHES, REPEATS = (16, 64), 15


def plans(dense: nn.Module) -> Iterator[tuple[str, Plan]]:
    """Yield a plan of every form at every share of the parameters, and of every recipe."""
    for share in SHARES:
        for form, sparse in FORMS.items():
            yield form, form_plan(dense, torch.zeros(1, 3, 32, 32), share, sparse)
    for form, stem in FULL_WIDTH.items():
        yield form, plan_recipe(dense, read_recipe(ROOT / "recipes" / "cifar10" / f"{stem}.yaml"))


def rows() -> list[dict[str, Any]]:
    """Measure every plan, in turns with the dense network."""
    dense = zoo.build("vgg16").eval()
    batches = [
        torch.randn(size, 3, 32, 32).to(memory_format=torch.channels_last) for size in BATCHES
    ]
    found = []
    for form, plan in plans(dense):
        pressed = build_skeleton(deepcopy(dense), plan).eval()
        pairs = [time_passes([dense, pressed], [x], repeats=REPEATS) for x in batches]
        assert plan.dense_macs is not None
        assert plan.macs is not None
        found.append(
            {
                "form": form,
                "params": plan.dense_params / plan.params,
                "macs": plan.dense_macs / plan.macs,
                "times": [median(a / b for a, b in zip(*pair, strict=True)) for pair in pairs],
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    """Write the result."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    setup = {
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, one thread, medians of {REPEATS} pairs",
    }
    result = {"rows": rows(), "batches": BATCHES, "setup": setup}
    write_atomically(RESULT, json.dumps(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
