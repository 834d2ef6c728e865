"""Draw ``docs/frontier.svg``: LeNet-5's files between 600 B and 3 kB, and those of others.

python -m benchmarks.files.frontier_plot
"""

from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
from benchmarks.files.sweep_tables import read
from benchmarks.tables import seeds_of

FIGURE = Path(__file__).parents[2] / "docs" / "frontier.svg"
HEADLINES = ("lenet5-950", "lenet5-1200", "lenet5-scada", "lenet5-ada")


def main() -> None:
    """Draw test errors over bytes."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    found = read("lenet5-frontier")
    picks = sorted(found["picks"], key=lambda pick: float(pick["bytes"]))
    axes.plot(
        [pick["bytes"] for pick in picks],
        [pick["test_error"]["mean"] for pick in picks],
        "o",
        color="#1f6fb4",
        label="ours, ± over seeds where there are several",
    )
    for stem in HEADLINES:
        files = [metrics["file"] for metrics in seeds_of(stem)]
        errors = [file["error"] for file in files]
        axes.errorbar(
            mean(file["bytes"] for file in files),
            mean(errors),
            yerr=stdev(errors) if len(errors) > 1 else 0,
            fmt="o",
            color="#1f6fb4",
            capsize=3,
        )
    others = found["references"]
    axes.plot(
        [other["bytes"] for other in others],
        [other["error"] for other in others],
        "D",
        color="#b4381f",
        label="others, as reported",
    )
    for number, other in enumerate(sorted(others, key=lambda other: float(other["bytes"]))):
        place, beside = (other["bytes"], other["error"]), (6, -10 if number % 2 else 5)
        axes.annotate(other["name"], place, beside, textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(550, 5000)
    ticks = [600, 800, 1000, 1500, 2000, 3000, 4000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("of the whole file", fontsize=8)
    axes.set_ylabel("error on MNIST's test images, %", fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
