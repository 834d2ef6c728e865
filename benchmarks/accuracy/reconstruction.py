"""Test error of pressed CIFAR-10 networks, by what their factors are fitted to.

Seed 001's table for the shared ResNets and for a VGG-16 that is trained here: speed-ups with and
without rank selection, by weights and by responses, before fine-tuning and after an epoch of it.
Beside it, at equal parameters, low rank + sparse against low rank and channel pruning alone; and
what fitting costs, in passes over the same images. A result is written after every row, and rows
that it has are not measured again.

    python -m benchmarks.accuracy.reconstruction --data DIRECTORY --checkpoints FOLDER
"""

import argparse
import json
import platform
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.data import batches, load
from tensorpress.data.loaders import BatchLoader
from tensorpress.data.splits import load_splits
from tensorpress.measure.latency import time_passes
from tensorpress.models import zoo
from tensorpress.models.zoo.weights import load_weights
from tensorpress.planning.plan import Plan
from tensorpress.reconstruct.layerwise import Reconstruct
from tensorpress.runs.recipe import read_recipe
from tensorpress.runs.training import Phases
from tensorpress.sensitivity.response_energy import response_energies
from tensorpress.train import evaluate, finetune
from tensorpress.utils.atomic_files import write_atomically

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "reconstruction"
TRAINED_HERE = {"vgg16-quarter": "vgg16-quarter"}
"""Networks without shared weights: the recipe whose dense training is theirs."""
NETWORKS = ("resnet20", "vgg16-quarter", "resnet56")
SPEEDUPS = (2.0, 2.4, 3.0, 4.0, 5.0)
KINDS: tuple[Reconstruct | None, ...] = (None, "norms", "refit", "inputs", "linear", "nonlinear")
KEPT = ("conv1", "features.0", "linear")

TUNED = {"resnet20": (2.0, 3.0, 5.0), "vgg16-quarter": (3.0,), "resnet56": (3.0,)}
"""The speed-ups at which a network is fine-tuned too, which takes most of the time."""

SHARES = (0.4, 0.25)
COMPARED = ("resnet20", "vgg16-quarter")
"""The networks in which forms are compared, which takes twice as long as all else."""
FORMS = {"low rank": 0.0, "low rank + sparse": 0.5, "channel pruning": 1.0}
"""Which part of the parameters of a layer the channels have that are kept whole."""


@dataclass
class Setting:
    """A network, images to calibrate and to fine-tune with, and the test set."""

    name: str
    dense: nn.Module
    calibration: list[Tensor]
    training: BatchLoader
    test: list[tuple[Tensor, Tensor]]
    _last: tuple[Plan, Reconstruct | None, nn.Module, float] | None = None

    @staticmethod
    def of(name: str, data: Path, checkpoints: Path, images: int) -> "Setting":
        """Return a network with its trained weights, and data as it takes them."""
        splits, preprocess = load("cifar10", data), zoo.network(name).preprocess
        drawn = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
        given = batches(splits.train.subset(drawn[:images]), preprocess, 128, shuffle=False)
        return Setting(
            name,
            trained(name, data, checkpoints),
            [x for x, _ in given],
            batches(splits.train, preprocess, 128, shuffle=True, augment="crop-flip"),
            [
                (x.contiguous(memory_format=torch.channels_last), labels)
                for x, labels in batches(splits.test, preprocess, 500, shuffle=False)
            ],
        )

    @property
    def kept(self) -> list[str]:
        """The first layer, which has three channels, and the last one, which is small."""
        return [name for name, _ in self.dense.named_modules() if name in KEPT]

    def plan(self, speedup: float, allocation: Any) -> Plan:
        """Return a plan for channel SVD of all layers but these."""
        example, budget = self.calibration[0][:1], f"macs={100 / speedup:.4f}%"
        return tp.plan(
            self.dense,
            example,
            scheme="channel_svd",
            skip=self.kept,
            budget=budget,
            allocation=allocation,
        )

    def row(self, plan: Plan, kind: Reconstruct | None, epochs: int) -> dict[str, Any]:
        """Press, fine-tune if told to, and test; the time is the processor's for pressing."""
        model, seconds = self.pressed(plan, kind)
        if epochs:
            options = {
                "schedule": "cosine",
                "distill": {"weight": 0.7, "temperature": 2.0},
                "precision": "bf16",
                "channels_last": True,
            }
            finetune(model, self.training, epochs=epochs, lr=1e-3, teacher=self.dense, **options)
        found = evaluate(model.to(memory_format=torch.channels_last), self.test)
        return {
            "kind": kind or "weights",
            "epochs": epochs,
            "params": plan.params,
            "macs": plan.macs,
            "error": found.error,
            "loss": found.loss,
            "seconds": seconds,
        }

    def pressed(self, plan: Plan, kind: Reconstruct | None) -> tuple[nn.Module, float]:
        """Return a pressed model and what it took; one is kept, as it may be asked for again."""
        if self._last is None or self._last[:2] != (plan, kind):
            start = process_time()
            calibration = None if kind is None else self.calibration
            model = tp.press(self.dense, plan, calibration=calibration, reconstruct=kind)
            self._last = plan, kind, model, process_time() - start
        return deepcopy(self._last[2]), self._last[3]

    def time_ratio(self, plan: Plan) -> float:
        """Return the time of a forward pass over that of the dense network, the median of pairs."""
        models = [self.dense, tp.press(self.dense, plan)]
        inputs = self.calibration[0].to(memory_format=torch.channels_last)
        dense, pressed = time_passes(models, [inputs], repeats=25)
        return median(b / a for a, b in zip(dense, pressed, strict=True))


def trained(name: str, data: Path, checkpoints: Path) -> nn.Module:
    """Return a network with the shared weights, or trained as its recipe says."""
    if name not in TRAINED_HERE:
        dense = zoo.build(name).eval()
        load_weights(dense, data / "cifar10_resnet" / f"{name}.safetensors")
        return dense
    recipe = read_recipe(ROOT / "recipes" / "cifar10" / f"{TRAINED_HERE[name]}.yaml")
    net, own = zoo.network(name), recipe.data
    splits = load_splits(net, own.name, data, own.validation)
    return Phases(recipe, net, splits, checkpoints / name, seed=0).dense_model()


def speedup_jobs(setting: Setting) -> Iterator[tuple[str, Any]]:
    """Yield the rows of seed 001's table, first all without fine-tuning, which takes longest."""
    scores = response_energies(setting.dense, setting.calibration, skip=setting.kept)
    plans = {
        (speedup, selection): setting.plan(speedup, scores if selection else "uniform")
        for speedup in SPEEDUPS
        for selection in (False, True)
    }
    for epochs in (0, 1):
        for (speedup, selection), plan in plans.items():
            if epochs and not (selection and speedup in TUNED[setting.name]):
                continue
            about = {"speedup": speedup, "selection": selection}
            for kind in KINDS:
                if epochs and kind == "norms":
                    continue  # training moves statistics by itself
                key = f"{speedup} {'selected' if selection else 'uniform'} {kind} {epochs}"
                yield key, lambda p=plan, k=kind, a=about, e=epochs: a | setting.row(p, k, e)


def form_jobs(setting: Setting) -> Iterator[tuple[str, Any]]:
    """Yield low rank + sparse and each alone, at equal parameters."""
    for share in SHARES:
        for form, sparse in FORMS.items():
            plan = form_plan(setting.dense, setting.calibration[0][:1], share, sparse)
            about = {"form": form, "share": share}
            key = f"{share} {form}"
            yield f"{key} time", lambda p=plan, a=about: a | {"time_ratio": setting.time_ratio(p)}
            for kind, epochs in ((None, 0), ("linear", 0), ("nonlinear", 0), ("nonlinear", 1)):
                yield (
                    f"{key} {kind} {epochs}",
                    lambda p=plan, k=kind, a=about, e=epochs: a | setting.row(p, k, e),
                )


def form_plan(dense: nn.Module, example: Tensor, share: float, sparse: float) -> Plan:
    """Leave every convolution a share of its parameters, and of that a part to channels kept."""
    entries: dict[str, Any] = {}
    for name, conv in dense.named_modules():
        if not isinstance(conv, nn.Conv2d) or name in KEPT:
            continue
        room, column = share * conv.weight.numel(), conv.weight[:, 0].numel()
        rank_price = conv.weight[0].numel() + conv.out_channels
        rank = max(1, int(room * (1 - sparse) / rank_price)) if sparse < 1 else 0
        channels = max(1, int((room - rank * rank_price) / column)) if sparse else 0
        ranks = tuple(filter(None, (channels, rank)))
        entries[name] = {"scheme": scheme_of(channels, rank), "ranks": ranks}
    return tp.plan(dense, example, scheme="channel_svd", overrides=entries)


def scheme_of(channels: int, rank: int) -> str:
    """Return the scheme that keeps so many channels, and has a part of such a rank."""
    if channels and rank:
        return "low_rank_sparse"
    return "channel_pruning" if channels else "channel_svd"


def cost_jobs(setting: Setting, *place: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a pass over the calibration images takes, and pressing to a third by them."""
    for way in ("pass", *KINDS[1:]):
        yield way, lambda w=way: alone(cost, w, setting.name, *place)


def cost(way: str, *place: Any) -> dict[str, Any]:
    """Return the seconds of the processor, and how much memory was added at most."""
    torch.set_num_threads(1)
    setting = Setting.of(*place)
    plan = setting.plan(3.0, "uniform")
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what is held now
    before, start = most_memory(), process_time()
    if way == "pass":
        with torch.no_grad():
            for x in setting.calibration:
                setting.dense(x)
    else:
        tp.press(setting.dense, plan, calibration=setting.calibration, reconstruct=way)
    seconds = process_time() - start
    return {"way": way, "seconds": seconds, "more_mb": most_memory() - before}


def most_memory() -> float:
    """Return the most memory that this process has held, in MB; of Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def alone(job: Any, *arguments: Any) -> Any:
    """Return what a job returns in a process of its own, whose memory is that of the job."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(job, *arguments).result()


def complete(path: Path, setting: Setting, *place: Any) -> None:
    """Measure the rows that a result does not have yet, and say which parts are done."""
    parts = {"speedups": speedup_jobs(setting), "costs": cost_jobs(setting, *place)}
    if setting.name in COMPARED:
        parts["forms"] = form_jobs(setting)
    found: dict[str, Any] = {
        "setup": {
            "torch": torch.__version__,
            "tensorpress": tp.__version__,
            "machine": f"{platform.machine()}, one thread, busy with other work",
            "images": sum(map(len, setting.calibration)),
        },
        "dense": evaluate(setting.dense, setting.test).error,
        **{part: {} for part in parts},
        "done": [],
    }
    if path.exists():
        before = json.loads(path.read_text())
        if before["setup"] != found["setup"]:
            raise SystemExit(f"{path} was measured with {before['setup']}: remove it first")
        found = before
    for part, jobs in parts.items():
        for key, job in jobs:
            if key not in found[part]:
                found[part][key] = job()
                print(setting.name, part, key, found[part][key], flush=True)
                keep(found, path)
        if part not in found["done"]:
            found["done"].append(part)
            keep(found, path)


def keep(found: dict[str, Any], path: Path) -> None:
    """Write a result."""
    write_atomically(path, json.dumps(found, indent=1).encode() + b"\n")


def main() -> None:
    """Measure network after network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True, help="of networks trained here")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--images", type=int, default=1024)
    given = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    place = (given.data, given.checkpoints, given.images)
    for name in given.networks:
        complete(RESULTS / f"{name}.json", Setting.of(name, *place), *place)


if __name__ == "__main__":
    main()
