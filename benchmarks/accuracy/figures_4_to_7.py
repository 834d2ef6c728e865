"""Trends of ADA-Tucker's figures 4 to 7: order, evenness of the core, a shared core.

Every network of the paper's Tables 4 to 9 is trained from scratch, briefly and alike, and tested.
Run it again with the same folder to go on after an interruption, or with another seed to add to
the results; the plot shows the mean over the seeds.

    python -m benchmarks.accuracy.figures_4_to_7 --seed 0
"""

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from tensorpress.data import Splits, batches, load
from tensorpress.measure import count_params
from tensorpress.models.zoo import network
from tensorpress.planning import LayerPlan, Plan
from tensorpress.press.press import press
from tensorpress.schemes.layer_spec import weight_spec
from tensorpress.schemes.reshape_modes import Shape, align_modes
from tensorpress.train import TrainConfig, evaluate, fit
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.formatting import format_shape

RESULTS = Path(__file__).parents[2] / "results" / "figures_4_to_7"

BATCH = 64

Shapes = dict[str, tuple[Shape, Shape]]

BASE: Shapes = {
    "conv1": ((25, 20), (5, 5)),
    "conv2": ((50, 25, 20), (5, 5, 5)),
    "ip1": ((40, 25, 20, 20), (5, 5, 5, 5)),
    "ip2": ((25, 20, 10), (5, 5, 5)),
}
ORDERS = {  # Tables 4 to 7
    "conv1": [
        ((25, 20), (5, 5)),
        ((20, 5, 5), (4, 4, 4)),
        ((20, 1, 5, 5), (3, 3, 3, 3)),
        ((5, 5, 5, 2, 2), (2, 2, 2, 2, 2)),
        ((5, 5, 5, 2, 2, 1), (2, 2, 2, 2, 2, 2)),
    ],
    "conv2": [
        ((250, 100), (20, 10)),
        ((50, 25, 20), (5, 5, 5)),
        ((50, 20, 5, 5), (4, 4, 4, 4)),
        ((10, 10, 10, 5, 5), (3, 3, 3, 3, 3)),
        ((10, 10, 5, 5, 5, 2), (2, 2, 2, 2, 2, 2)),
    ],
    "ip1": [
        ((800, 500), (10, 10)),
        ((500, 40, 20), (5, 5, 5)),
        ((40, 25, 20, 20), (5, 5, 5, 5)),
        ((25, 16, 10, 10, 10), (4, 4, 4, 4, 4)),
        ((25, 10, 8, 8, 5, 5), (3, 3, 3, 3, 3, 3)),
    ],
    "ip2": [
        ((500, 10), (6, 6)),
        ((25, 20, 10), (5, 5, 5)),
        ((20, 10, 5, 5), (4, 4, 4, 4)),
        ((8, 5, 5, 5, 5), (3, 3, 3, 3, 3)),
        ((5, 5, 5, 5, 4, 2), (2, 2, 2, 2, 2, 2)),
    ],
}
EVENNESS = [(1, 9), (2, 8), (3, 5), (4, 4), (6, 2), (8, 1)]  # Table 8, cores of conv1
SMALLER: Shapes = BASE | {
    "conv2": ((50, 25, 20), (4, 4, 4)),
    "ip1": ((40, 25, 20, 20), (4, 4, 4, 4)),
    "ip2": ((25, 20, 10), (4, 4, 4)),
}
SIDES = [3, 4, 5, 6, 7]  # Table 9
FOURTH_ORDER = {
    "conv1": (20, 1, 5, 5),
    "conv2": (50, 20, 5, 5),
    "ip1": (40, 25, 20, 20),
    "ip2": (25, 20, 5, 2),
}


def experiments() -> dict[str, tuple[Shapes, bool]]:
    """Return every network of the figures by name: shapes, and whether the core is shared."""
    found: dict[str, tuple[Shapes, bool]] = {}
    for layer, options in ORDERS.items():
        for modes, ranks in options:
            found[f"order/{layer}/{len(modes)}"] = (BASE | {layer: (modes, ranks)}, False)
    for ranks in EVENNESS:
        found[f"evenness/{format_shape(ranks)}"] = (SMALLER | {"conv1": ((25, 20), ranks)}, False)
    for side in SIDES:
        shapes = {layer: (modes, (side,) * 4) for layer, modes in FOURTH_ORDER.items()}
        for shared in (False, True):
            found[f"{'scada' if shared else 'ada'}/{side}"] = (shapes, shared)
    return found


def paper_plan(model: torch.nn.Module, shapes: Shapes, shared: bool) -> Plan:
    """Return the plan of a table's row; its ranks may exceed small modes, as the paper's do."""
    layers, scheme = [], "scada_tucker" if shared else "ada_tucker"
    for name, (modes, ranks) in shapes.items():
        weight = model.get_submodule(name).weight
        shape = tuple(weight.shape)
        aligned, sides = align_modes(shape, modes, ranks)
        layers.append(LayerPlan(name, scheme, weight_spec(shape), sides, {"modes": aligned}))
    return Plan(scheme, tuple(layers))


@cache
def mnist() -> Splits:
    """Return MNIST with the validation images of the recipes."""
    return load("mnist", validation=5000)


def train_and_test(shapes: Shapes, shared: bool, epochs: int, seed: int) -> dict[str, Any]:
    """Train one network from scratch and return its size and errors in percent."""
    net = network("lenet5")
    splits = mnist()
    model = net.build()
    pressed = press(model, paper_plan(model, shapes, shared), init="kaiming", seed=seed)
    training = batches(splits.train, net.preprocess, BATCH, shuffle=True, seed=seed)
    config = TrainConfig(epochs=epochs, lr=0.005, schedule="cosine", channels_last=True, seed=seed)
    history = fit(pressed, training, config)
    errors = {
        part: evaluate(pressed, batches(images, net.preprocess, 1000, shuffle=False)).error
        for part, images in (("validation", splits.validation), ("test", splits.test))
    }
    seconds = sum(epoch.seconds for epoch in history.epochs)
    return {"params": count_params(pressed), **errors, "seconds": seconds}


def run(epochs: int, seed: int) -> None:
    """Train whatever of the experiments has no result yet."""
    path = RESULTS / f"epochs{epochs}-seed{seed}.json"
    RESULTS.mkdir(parents=True, exist_ok=True)
    done = json.loads(path.read_text()) if path.exists() else {}
    done.setdefault("torch", torch.__version__)
    trained: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, (shapes, shared) in experiments().items():
        key = (json.dumps(shapes, sort_keys=True), shared)
        if name not in done:
            done[name] = trained.get(key) or train_and_test(shapes, shared, epochs, seed)
            write_atomically(path, json.dumps(done, indent=1).encode())
            print(name, done[name], flush=True)
        trained[key] = done[name]


def mean_errors() -> dict[str, tuple[int, float, float]]:
    """Return parameters, and mean and half range of the test errors over all result files."""
    files = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    found = {}
    for name in experiments():
        errors = [done[name]["test"] for done in files if name in done]
        if errors:
            params = next(done[name]["params"] for done in files if name in done)
            spread = (max(errors) - min(errors)) / 2
            found[name] = (params, sum(errors) / len(errors), spread)
    return found


def plot() -> None:
    """Draw the four figures into one picture beside the results."""
    found = mean_errors()
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2), constrained_layout=True)
    for axis, layers, title in (
        (axes[0], ("conv1", "conv2"), "Order of a convolution (figure 4)"),
        (axes[1], ("ip1", "ip2"), "Order of a linear layer (figure 5)"),
    ):
        for layer in layers:
            names = [f"order/{layer}/{order}" for order in range(2, 7)]
            _errorbars(axis, [2, 3, 4, 5, 6], names, found, layer)
        axis.set(title=title, xlabel="order of the reshaped weight", xticks=range(2, 7))
    cores = [format_shape(ranks) for ranks in EVENNESS]
    names = [f"evenness/{core}" for core in cores]
    _errorbars(axes[2], list(range(len(cores))), names, found, "conv1")
    axes[2].set(title="Evenness of the core (figure 6)", xlabel="core of conv1")
    axes[2].set_xticks(range(len(cores)), cores)
    for scheme in ("ada", "scada"):
        names = [f"{scheme}/{side}" for side in SIDES]
        params = [found[name][0] for name in names if name in found]
        _errorbars(axes[3], params, names, found, f"{scheme.upper()}-Tucker")
    axes[3].set(title="Own or shared cores (figure 7)", xlabel="parameters")
    for axis in axes:
        axis.set_ylabel("test error (%)")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(RESULTS / "figures_4_to_7.png", dpi=110)


def _errorbars(
    axis: Any, x: list[int], names: list[str], found: dict[str, Any], label: str
) -> None:
    points = [(at, *found[name]) for at, name in zip(x, names, strict=False) if name in found]
    if points:
        at, params, mean, spread = zip(*points, strict=True)
        axis.errorbar(at, mean, yerr=spread, marker="o", capsize=3, label=label)
        for place, count, error in zip(at, params, mean, strict=True):
            axis.annotate(f"{count:,}", (place, error), (0, 6), textcoords="offset points", size=7)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.plot_only:
        run(arguments.epochs, arguments.seed)
    plot()
