"""Draw ``docs/reconstruction.svg`` from ``results/reconstruction/``.

python -m benchmarks.accuracy.reconstruction_plot
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from benchmarks.accuracy.reconstruction_table import KINDS, networks
from matplotlib.axes import Axes

FIGURE = Path(__file__).parents[2] / "docs" / "reconstruction.svg"
COLOURS = ("#b0b0b0", "#7a7a7a", "#e8a33d", "#4fa36b", "#1f6fb4", "#b4381f")


def draw(axes: Axes, name: str, tables: dict[str, Any]) -> None:
    """Draw the increase of the error over the speed-up, a line a kind."""
    for kind, colour in zip(KINDS, COLOURS, strict=True):
        for selection, style in ((False, ":"), (True, "-")):
            rows = [
                row
                for row in tables["speedups"].values()
                if (row["kind"], row["selection"], row["epochs"]) == (kind, selection, 0)
            ]
            axes.plot(
                [row["speedup"] for row in rows],
                [row["error"] - tables["dense"] for row in rows],
                style,
                marker="o",
                markersize=3,
                color=colour,
                label=kind if selection else None,
            )
    axes.set_title(f"{name}, dense {tables['dense']:.2f} %", fontsize=10)
    axes.set_xlabel("MACs of the dense network over those left", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw the networks side by side."""
    found = networks("speedups")
    figure, panels = plt.subplots(
        1, len(found), figsize=(max(6, 4 * len(found)), 4.2), layout="constrained", squeeze=False
    )
    for axes, (name, tables) in zip(panels[0], found, strict=True):
        draw(axes, name, tables)
    panels[0][0].set_ylabel("more test error, points", fontsize=8)
    figure.legend(
        *panels[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(KINDS),
        fontsize=8,
        frameon=False,
        title="what is fitted (dotted: uniform ranks)",
        title_fontsize=8,
    )
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
