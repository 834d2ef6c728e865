"""How much faster VGG-16 gets by each form, at its full width and equal parameters.

Time does not depend on the weights, so they are random; by what the errors grow is measured on a
narrower network, by ``benchmarks/reconstruction.py``.

    python benchmarks/form_times.py
"""

import json
import platform
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch

from reconstruction import FORMS, form_plan
from tensorpress import zoo
from tensorpress.files import write_atomically
from tensorpress.measure.latency import pass_times
from tensorpress.pressing import skeleton

RESULT = Path(__file__).parents[1] / "results" / "form_times.json"
SHARES = (0.4, 0.25, 1 / 4.44)
IMAGES, REPEATS = 16, 15


def rows() -> list[dict[str, Any]]:
    """Measure every form at every share, in turns with the dense network."""
    dense = zoo.build("vgg16").eval()
    inputs = torch.randn(IMAGES, 3, 32, 32).to(memory_format=torch.channels_last)
    found = []
    for share in SHARES:
        for form, sparse in FORMS.items():
            plan = form_plan(dense, inputs[:1], share, sparse)
            pressed = skeleton(deepcopy(dense), plan).eval()
            before, after = pass_times([dense, pressed], [inputs], repeats=REPEATS)
            assert plan.dense_macs is not None
            assert plan.macs is not None
            found.append(
                {
                    "form": form,
                    "params": plan.dense_params / plan.params,
                    "macs": plan.dense_macs / plan.macs,
                    "time": median(a / b for a, b in zip(before, after, strict=True)),
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
        "machine": f"{platform.machine()}, one thread, {IMAGES} images, medians of {REPEATS} pairs",
    }
    result = {"rows": rows(), "setup": setup}
    write_atomically(RESULT, json.dumps(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
