"""Draw ``results/decompose/decompose.png`` from the numbers beside it.

python -m benchmarks.decompose.decompose_plot
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from benchmarks.tables import decompose_seconds
from matplotlib.axes import Axes

FOLDER = Path(__file__).parents[2] / "results" / "decompose"
COLOURS = {"tensorly + numpy EVBMF": "#b0b0b0", "ours": "#1f6fb4", "floor": "#e8a33d"}


def draw(axes: Axes, title: str, seconds: dict[str, dict[str, float]]) -> None:
    """Draw a group of bars for every name, one bar a side."""
    width = 0.8 / len(COLOURS)
    for number, (side, colour) in enumerate(COLOURS.items()):
        places = [group + (number - 1) * width for group in range(len(seconds))]
        values = [case[side] for case in seconds.values()]
        bars = axes.bar(places, values, width, color=colour, label=side)
        axes.bar_label(bars, fmt="{:.2g}", fontsize=7, padding=1)
    axes.set_xticks(range(len(seconds)), list(seconds))
    axes.tick_params(axis="x", labelsize=8, length=0)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_title(title, fontsize=10)
    axes.set_ylabel("processor seconds, 1 thread", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw networks beside single kernels."""
    results: dict[str, Any] = json.loads((FOLDER / "decompose.json").read_text())
    networks, kernels = decompose_seconds(results)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4), width_ratios=(len(networks), len(kernels)), layout="constrained"
    )
    draw(left, "EVBMF ranks + Tucker-2, whole network", networks)
    draw(right, "one kernel", {name.replace("×", "×\n", 1): k for name, k in kernels.items()})
    right.legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(FOLDER / "decompose.png", dpi=150)


if __name__ == "__main__":
    main()
