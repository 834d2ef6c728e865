"""How much of the saved multiplications is saved time: pressed networks against dense ones.

    python -m benchmarks.speed.inference_time

VGG-16 and ResNet-50 at 2 and 4 times fewer MACs, planned with scheme="auto", in three ways to run
them; and planned for 2 and 4 times less time. Dense and pressed networks take turns; times are
medians of the processor time of the one thread that computes, which other work on the machine does
not add to. Weights are random, with spectra that fall as those of trained weights do. Where the
time goes is in inference_profile.py.
"""

import argparse
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import torch
from benchmarks.decompose.decompose_cases import trained_like
from torch import Tensor, nn

from tensorpress import load_model, plan, press
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.latency import time_passes
from tensorpress.planning.plan import Plan
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "inference_time.json"
NETWORKS = {"VGG-16": "torchvision:vgg16", "ResNet-50": "torchvision:resnet50"}
COUNTED = {
    "macs=50%": ("macs=50%", 1),
    "macs=25%": ("macs=25%", 1),
    "macs=50%, ranks of 16": ("macs=50%", 16),
    "macs=25%, ranks of 16": ("macs=25%", 16),
}
TIMED = {
    "latency=50%, ranks of 16": ("latency=50%", 16),
    "latency=40%, ranks of 16": ("latency=40%", 16),
    "latency=25%, ranks of 16": ("latency=25%", 16),
}
WAYS = ("contiguous", "channels_last", "compiled")
BATCHES = (1, 8)
PLANNED_FOR = ("contiguous", 1)
EFFORT: dict[str, Any] = {"least": 7, "repeats": 41, "seconds": 90.0, "precision": 0.01}


def network(name: str) -> nn.Module:
    """Return a network of torchvision; its kernels have the spectra of `trained_like` ones."""
    torch.manual_seed(0)
    model = load_model(NETWORKS[name]).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.detach()
            drawn = trained_like(tuple(weight.shape))
            weight.copy_(drawn * (weight.std() / drawn.std()))
    return model


def images(batch: int) -> Tensor:
    """Return a batch of random images."""
    return torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(batch))


def ready(model: nn.Module, way: str) -> nn.Module:
    """Return a model as it is run in one of the ways."""
    if way == "compiled":
        return torch.compile(model)
    last = way == "channels_last"
    return model.to(memory_format=torch.channels_last if last else torch.contiguous_format)


def input_for(way: str, batch: int) -> Tensor:
    """Return a batch of images as it is given in one of the ways."""
    last = way == "channels_last"
    return images(batch).contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


def times(models: Mapping[str, nn.Module], way: str, batch: int) -> dict[str, Any]:
    """Return the median milliseconds of models, and the first one's time over each other's."""
    torch.compiler.reset()
    runs = [ready(model, way) for model in models.values()]
    taken = time_passes(runs, [input_for(way, batch)], clock=thread_time, **EFFORT)
    found: dict[str, Any] = {"rounds": len(taken[0]), "dense_ms": median(taken[0])}
    for label, own in zip(list(models)[1:], taken[1:], strict=True):
        speedup = median(a / b for a, b in zip(taken[0], own, strict=True))
        found[label] = {"ms": median(own), "speedup": speedup}
    return found


def cost(made: Plan) -> dict[str, Any]:
    """Return what a plan costs, and how many times more the dense network multiplies."""
    assert made.macs is not None
    assert made.dense_macs is not None
    return {
        "id": made.id,
        "macs": made.macs,
        "dense_macs": made.dense_macs,
        "params": made.params,
        "dense_params": made.dense_params,
        "fewer_macs": made.dense_macs / made.macs,
    }


def cases(ways: Sequence[str]) -> Iterator[tuple[str, int, list[str]]]:
    """Yield how networks are run, and by which plans they are pressed for that."""
    for way, batch in product(ways, BATCHES):
        labels = list(COUNTED)[:2] if way == "compiled" else list(COUNTED)
        if (way, batch) == PLANNED_FOR:
            labels += TIMED
        yield way, batch, labels


def run(name: str, ways: Sequence[str], own: dict[str, Any]) -> Iterator[None]:
    """Measure a network, into ``own``; yield when more of it is known."""
    dense = network(name)
    models: dict[str, nn.Module | None] = {}
    for way, batch, labels in cases(ways):
        for label in labels:
            if label not in models:
                models[label], known = planned(dense, *(COUNTED | TIMED)[label])
                own.setdefault("plans", {})[label] = known
                print(name, label, known, flush=True)
        small = {label: model for label in labels if (model := models[label]) is not None}
        found = times({"dense": dense, **small}, way, batch)
        for label in small:
            saved = own["plans"][label]["fewer_macs"]
            found[label]["share_of_theory"] = found[label]["speedup"] / saved
        own.setdefault("times", {})[f"{way}, batch {batch}"] = found
        print(name, way, batch, json.dumps(found), flush=True)
        yield


def planned(
    dense: nn.Module, budget: str, multiple: int
) -> tuple[nn.Module | None, dict[str, Any]]:
    """Return a network pressed within a budget and what it costs, or why there is none."""
    try:
        made = plan(dense, images(1), budget=budget, round_to=multiple)
    except InvalidArgumentError as error:
        return None, {"out_of_reach": str(error)}
    return press(dense, made, init="kaiming").eval(), cost(made)


def main() -> None:
    """Measure what is asked for, and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results["settings"] = {
        "versions": {package: version(package) for package in ("torch", "torchvision")},
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, 1 thread",
        "time": "processor time of the thread that computes, medians of interleaved passes",
        "weights": "random, spectra as trained_like of decompose_cases.py; seed 0",
        "scheme": "auto",
        **EFFORT,
    }
    for name in arguments.networks:
        for _ in run(name, arguments.ways, results.setdefault(name, {})):
            write_atomically(RESULT, json.dumps(results, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
