"""Primal and dual residuals of the ADMM that chooses channels, for every layer of ResNet-20.

Draws ``docs/admm.svg`` from them.

    python -m benchmarks.accuracy.admm_residuals --data DIRECTORY
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from benchmarks.accuracy.reconstruction import Setting, form_plan

import tensorpress as tp
from tensorpress.utils.atomic_files import write_atomically

ROOT = Path(__file__).parents[2]
RESULT, FIGURE = ROOT / "results" / "admm_residuals.json", ROOT / "docs" / "admm.svg"
SHARE, SPARSE = 0.4, 0.5  # of the parameters of a layer, and of those to few channels


class Residuals(logging.Handler):
    """Collects what the log says of every ADMM."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the residuals of a layer."""
        told = record.__dict__
        if "primal" in told:
            self.found.append({key: told[key] for key in ("layer", "primal", "dual")})


def measure(data: Path, images: int) -> list[dict[str, Any]]:
    """Press by responses through the ReLU and return the residuals, layer by layer."""
    setting = Setting.of("resnet20", data, Path(), images)
    residuals, logger = Residuals(), logging.getLogger("tensorpress.press")
    logger.addHandler(residuals)
    logger.setLevel(logging.INFO)
    plan = form_plan(setting.dense, setting.calibration[0][:1], SHARE, SPARSE)
    tp.press(setting.dense, plan, calibration=setting.calibration, reconstruct="nonlinear")
    return residuals.found


def draw(found: list[dict[str, Any]]) -> None:
    """Draw both residuals over the iterations, a line a layer."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    colours = plt.get_cmap("viridis")
    for axes, key in zip(panels, ("primal", "dual"), strict=True):
        for number, layer in enumerate(found):
            axes.plot(layer[key], color=colours(number / len(found)), linewidth=0.8)
        axes.set_yscale("log")
        axes.set_title(f"{key} residual, a line a layer", fontsize=10)
        axes.set_xlabel("iteration", fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=512)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(given.data, given.images)
    rounded = [
        layer | {key: [float(f"{x:.2e}") for x in layer[key]] for key in ("primal", "dual")}
        for layer in found
    ]
    result = {"network": "resnet20", "images": given.images, "torch": torch.__version__}
    write_atomically(RESULT, json.dumps(result | {"layers": rounded}).encode())
    draw(found)


if __name__ == "__main__":
    main()
