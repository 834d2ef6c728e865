r"""What a pass and a training step of tt_conv take beside tt_weight, for the same train.

Dense layer, tt_conv and tt_weight take turns on one core; the least processor time of 15.

Freed memory is kept, or now one and now another would wait for new pages:

    MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000 \
        python -m benchmarks.speed.tt_conv_step
"""

import json
import platform
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import nn

from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.registry import scheme
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "tt_conv_step.json"
CHANNELS, MODES, BATCH, SIDE, REPEATS = 128, (4, 8, 4), 32, 16, 15
RANKS = ((2, 2, 2), (3, 3, 3), (4, 4, 4), (9, 8, 8), (9, 16, 16))


def times(layers: dict[str, nn.Module], x: torch.Tensor, *, step: bool) -> dict[str, float]:
    """Return the milliseconds of a pass, or of a training step, of each layer."""
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(REPEATS):
        for name, layer in layers.items():
            started = process_time()
            with torch.set_grad_enabled(step):
                output = layer(x)
            if step:
                output.sum().backward()
            seconds[name].append(process_time() - started)
    return {name: 1000 * min(values) for name, values in seconds.items()}


def row(conv: nn.Conv2d, ranks: tuple[int, ...], x: torch.Tensor) -> dict[str, Any]:
    """Measure one train in both forms."""
    options = {"row_modes": MODES, "column_modes": MODES}
    methods = {name: scheme(name, options) for name in ("tt_conv", "tt_weight")}
    layers: dict[str, nn.Module] = {"dense": conv}
    layers |= {name: press_layer(conv, method, ranks) for name, method in methods.items()}
    costs = {name: method.cost(conv, ranks, (SIDE, SIDE)) for name, method in methods.items()}
    return {
        "ranks": ranks,
        "params": costs["tt_conv"].params,
        "fewer_macs": costs["tt_weight"].macs / costs["tt_conv"].macs,
        "pass_ms": times(layers, x, step=False),
        "step_ms": times(layers, x, step=True),
    }


def tt_conv_table() -> str:
    """Return the table of the result file."""
    result = json.loads(RESULT.read_text())
    rows = [
        "| ranks | parameters | fewer multiplications | pass ms: dense | `tt_conv` | `tt_weight` "
        "| step ms: dense | `tt_conv` | `tt_weight` |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in result["rows"]:
        milliseconds = [*one["pass_ms"].values(), *one["step_ms"].values()]
        cells = [
            ", ".join(map(str, one["ranks"])),
            f"{one['params']:,}",
            f"{one['fewer_macs']:.1f}×",
            *(f"{value:.0f}" for value in milliseconds),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"{result['machine']}, one core, torch {result['torch']}."])


def main() -> None:
    """Write the result."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    x = torch.randn(BATCH, CHANNELS, SIDE, SIDE, requires_grad=True)
    result = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "rows": [row(conv, ranks, x) for ranks in RANKS],
    }
    write_atomically(RESULT, json.dumps(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
