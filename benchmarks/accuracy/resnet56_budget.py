"""ResNet-56 at half of its MACs without fine-tuning: ways to spread the budget over its layers.

Every scheme with every way: how much error the pressed network has on the 10,000 test images, and
on 2,000 training images that were not among the calibration images. What a way leaves open was
chosen on the latter, and test images are seen once, after all else. Batch-norm statistics stay
those of the dense network. Every measurement is a file in a folder, so that an interrupted run goes
on, and several processes share the work.

    python -m benchmarks.accuracy.resnet56_budget --data DIRECTORY --journal FOLDER [--test]
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.data import load
from tensorpress.data.images import ImageSet
from tensorpress.models import zoo
from tensorpress.models.zoo.weights import load_weights
from tensorpress.planning.plan import Plan
from tensorpress.planning.scores import Scores
from tensorpress.sensitivity import sensitivity
from tensorpress.train import evaluate
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.jobs import JobFolder

RESULT = Path(__file__).parents[2] / "results" / "resnet56_budget.json"
WEIGHTS = "cifar10_resnet/resnet56.safetensors"
BUDGET = "macs=50%"
SCHEMES = ("tucker2", "channel_svd", "spatial_svd")
ALL = "any of the three"
CALIBRATION, HELD_OUT, BATCH, SEED = 500, 2000, 125, 0
CANDIDATES, MEASURED = 9, 342

Batches = list[tuple[Tensor, Tensor]]
Way = Callable[[nn.Module, Tensor, str | tuple[str, ...]], Plan]


def batches(images: ImageSet) -> Batches:
    """Return images as the network takes them."""
    preprocess = zoo.network("resnet56").preprocess
    return [
        (
            preprocess(images.images[k : k + BATCH]).to(memory_format=torch.channels_last),
            images.labels[k : k + BATCH],
        )
        for k in range(0, len(images), BATCH)
    ]


def by_rule(rule: str | Scores, net: nn.Module, x: Tensor, scheme: str | tuple[str, ...]) -> Plan:
    """Return the plan by a rule of the library, or by scores."""
    return tp.plan(net, x, scheme=scheme, budget=BUDGET, allocation=rule)


def ways(scored: dict[str, Scores]) -> dict[str, Way]:
    """Return the ways to spread the budget, by name."""
    found = {
        "uniform": "uniform",
        "EVBMF, weakened": "evbmf",
        "energy product": "energy",
        "weight error": "error",
        "similarity, estimated": scored["estimated"],
        "similarity": scored["similarity"],
        "loss": scored["loss"],
        "similarity, worst": replace(scored["similarity"], rule="worst"),
        "error, worst (AIMET)": replace(scored["error"], rule="worst"),
    }
    return {name: partial(by_rule, rule) for name, rule in found.items()}


def scores(net: nn.Module, calibration: Batches, journal: Path, jobs: int) -> dict[str, Scores]:
    """Return scores by metric, and those that are estimated alone."""
    common: dict[str, Any] = {"scheme": SCHEMES, "candidates": CANDIDATES}
    folder = journal / "sensitivity"
    metrics = ("similarity", "loss", "error")
    found = {
        name: sensitivity(net, calibration, metric=name, journal=folder, measured=jobs, **common)
        for name in metrics
    }
    found["estimated"] = sensitivity(
        net, calibration, metric="similarity", measured=0, journal=journal / "none", **common
    )
    return found


def agreement(scored: dict[str, Scores]) -> dict[str, float]:
    """Return Spearman's correlation of the estimates with what was measured, by metric."""
    guesses = {
        (name, choice.scheme, choice.ranks): choice.score
        for name, choices in scored["estimated"].layers.items()
        for choice in choices
    }
    found = {}
    for metric in ("similarity", "loss", "error"):
        pairs = [
            (guesses[name, choice.scheme, choice.ranks], choice.increase)
            for name, choices in scored[metric].layers.items()
            for choice in choices
            if choice.measured
        ]
        found[metric] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return found


def row(net: nn.Module, x: Tensor, way: Way, scheme: str, data: Batches) -> dict[str, Any]:
    """Return what a plan costs, and loss and error of the network pressed by it."""
    start = process_time()
    plan = way(net, x, SCHEMES if scheme == ALL else scheme)
    seconds = process_time() - start
    pressed = tp.press(net, plan).to(memory_format=torch.channels_last)
    found = evaluate(pressed, data)
    return {
        "loss": found.loss,
        "error": found.error,
        "macs": plan.macs,
        "macs_share": plan.macs / plan.dense_macs,
        "params_share": plan.params / plan.dense_params,
        "pressed_layers": len(plan.layers),
        "planning_seconds": seconds,
        "plan": plan.id,
    }


def compared(
    net: nn.Module, journal: Path, found: dict[str, Way], data: Batches, about: dict[str, Any]
) -> dict[str, Any]:
    """Return a row for every scheme and way that chooses ranks for it."""
    x = data[0][0][:1]
    names = [
        f"{scheme}: {way}"
        for scheme in (*SCHEMES, ALL)
        for way in found
        if not (scheme == ALL and way in ("uniform", "EVBMF, weakened"))
    ]

    def do(name: str) -> dict[str, Any]:
        scheme, _, way = name.partition(": ")
        return row(net, x, found[way], scheme, data)

    return JobFolder(journal, about).run(
        {name: (name,) for name in names}, do, title=f"plans on {about['images']}"
    )


def main() -> None:
    """Score, plan, press, evaluate; write the results when the test images were seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("TENSORPRESS_DATA"))
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--test", action="store_true", help="see the test images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net = zoo.build("resnet56").eval()
    load_weights(net, arguments.data / WEIGHTS)
    net.to(memory_format=torch.channels_last)
    splits = load("cifar10", arguments.data)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(SEED))
    calibration = batches(splits.train.subset(order[:CALIBRATION]))
    held_out = batches(splits.train.subset(order[-HELD_OUT:]))
    scored = scores(net, calibration, arguments.journal, MEASURED)
    found = ways(scored)
    recipe = {"budget": BUDGET, "calibration": CALIBRATION, "candidates": CANDIDATES, "seed": SEED}
    recipe |= {"measured": MEASURED, "weights": WEIGHTS}
    about = {**recipe, "images": f"{HELD_OUT} training images"}
    results = {"held_out": compared(net, arguments.journal / "held_out", found, held_out, about)}
    if arguments.test:
        test = batches(splits.test)
        about = {**recipe, "images": "test"}
        results["test"] = compared(net, arguments.journal / "test", found, test, about)
        results["dense"] = {"test_error": evaluate(net, test).error}
        content = {
            "recipe": {**recipe, "held_out": HELD_OUT, "fine_tuning": None, "batch_norm": "kept"},
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "device": f"{platform.machine()} CPU, 1 thread, channels last",
            "spearman_of_estimates": agreement(scored),
            **results,
        }
        write_atomically(RESULT, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    print(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
