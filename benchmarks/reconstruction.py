"""Test error of pressed CIFAR-10 networks without fine-tuning, by what their factors are fitted to.

Seed 001's table for the shared ResNets: speed-ups with and without rank selection, by weights and
by responses. Beside it, at equal parameters, low rank + sparse against low rank alone and few
channels alone; and what fitting costs, in passes over the same images. Rows are kept in a journal,
so that an interrupted run goes on.

    python benchmarks/reconstruction.py --data DIRECTORY --journal FOLDER [--networks resnet20 ...]
"""

import argparse
import json
import platform
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress import zoo
from tensorpress.data import batches, load
from tensorpress.files import write_atomically
from tensorpress.planning.plan import Plan
from tensorpress.reconstruct.layerwise import Reconstruct
from tensorpress.sensitivity.energies import response_energies
from tensorpress.train import evaluate
from tensorpress.zoo.weights import load_weights

RESULT = Path(__file__).parents[1] / "results" / "reconstruction.json"
NETWORKS = ("resnet20", "resnet56")
SPEEDUPS = (2.0, 2.4, 3.0, 4.0, 5.0)
KINDS: tuple[Reconstruct | None, ...] = (None, "norms", "refit", "inputs", "linear", "nonlinear")
KEPT = ("conv1", "linear")
"""The first layer has three channels and the last one is small: dense in every plan."""

SHARES = (0.6, 0.4, 0.25)
FORMS = {"low rank": 0.0, "low rank + sparse": 0.5, "few channels": 1.0}
"""Which part of the parameters of a layer its few channels have."""


@dataclass
class Setting:
    """A network, calibration images and the test set."""

    name: str
    dense: nn.Module
    calibration: list[Tensor]
    test: list[tuple[Tensor, Tensor]]

    @staticmethod
    def of(name: str, data: Path, images: int) -> "Setting":
        """Return a network with its trained weights, and data as it takes them."""
        dense = zoo.build(name).eval()
        load_weights(dense, data / "cifar10_resnet" / f"{name}.safetensors")
        splits, preprocess = load("cifar10", data), zoo.network(name).preprocess
        drawn = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
        given = batches(splits.train.subset(drawn[:images]), preprocess, 128, shuffle=False)
        test = batches(splits.test, preprocess, 500, shuffle=False)
        return Setting(name, dense, [x for x, _ in given], list(test))

    def pressed(self, plan: Plan, kind: Reconstruct | None) -> dict[str, Any]:
        """Press and test; the time is that of the processor."""
        start = process_time()
        calibration = None if kind is None else self.calibration
        model = tp.press(self.dense, plan, calibration=calibration, reconstruct=kind)
        seconds = process_time() - start
        found = evaluate(model, self.test)
        return {
            "kind": kind or "weights",
            "params": plan.params,
            "macs": plan.macs,
            "error": found.error,
            "loss": found.loss,
            "seconds": seconds,
        }


def speedup_jobs(setting: Setting) -> Iterator[tuple[str, Any]]:
    """Yield the rows of seed 001's table."""
    scores = response_energies(setting.dense, setting.calibration, skip=KEPT)
    for speedup in SPEEDUPS:
        for selection in (False, True):
            plan = tp.plan(
                setting.dense,
                setting.calibration[0][:1],
                scheme="channel_svd",
                budget=f"macs={100 / speedup:.4f}%",
                ranks=scores if selection else "uniform",
                skip=KEPT,
            )
            about = {"speedup": speedup, "selection": selection}
            for kind in KINDS:
                key = f"{setting.name}-{speedup}-{'yes' if selection else 'no'}-{kind}"
                yield key, lambda p=plan, k=kind, a=about: a | setting.pressed(p, k)


def form_jobs(setting: Setting) -> Iterator[tuple[str, Any]]:
    """Yield low rank + sparse and each alone, at equal parameters."""
    for share in SHARES:
        for form, sparse in FORMS.items():
            plan = form_plan(setting, share, sparse)
            for kind in (None, "linear", "nonlinear"):
                about = {"form": form, "share": share}
                key = f"{setting.name}-{form}-{share}-{kind}"
                yield key, lambda p=plan, k=kind, a=about: a | setting.pressed(p, k)


def form_plan(setting: Setting, share: float, sparse: float) -> Plan:
    """Leave every convolution a share of its parameters, and of that a part to few channels.

    Few channels alone are the sum at rank 1.
    """
    entries = {}
    for name, conv in setting.dense.named_modules():
        if not isinstance(conv, nn.Conv2d) or name in KEPT:
            continue
        room, column = share * conv.weight.numel(), conv.weight[:, 0].numel()
        rank_price = conv.weight[0].numel() + conv.out_channels
        rank = max(1, int(room * (1 - sparse) / rank_price))
        channels = max(1, int((room - rank * rank_price) / column))
        entries[name] = (
            {"scheme": "low_rank_sparse", "ranks": (channels, rank)}
            if sparse
            else {"scheme": "channel_svd", "ranks": rank}
        )
    example = setting.calibration[0][:1]
    return tp.plan(setting.dense, example, scheme="channel_svd", overrides=entries)


def cost_of(setting: Setting) -> dict[str, Any]:
    """Return what a pass over the calibration images takes, and the most memory so far."""
    with torch.no_grad():
        setting.dense(setting.calibration[0])
        start = process_time()
        for x in setting.calibration:
            setting.dense(x)
    seconds = process_time() - start
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "pass_seconds": seconds,
        "peak_mb": most,
        "dense": evaluate(setting.dense, setting.test).error,
    }


def main() -> None:
    """Run what the journal does not hold yet and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--images", type=int, default=1024)
    given = parser.parse_args()
    given.journal.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in given.networks:
        setting = Setting.of(name, given.data, given.images)
        parts = {"speedups": speedup_jobs, "forms": form_jobs}
        tables: dict[str, Any] = {"images": given.images, "before": cost_of(setting)}
        for part, jobs in parts.items():
            tables[part] = [kept(given.journal / f"{key}.json", job) for key, job in jobs(setting)]
        tables["after"] = cost_of(setting)
        found[name] = tables
        found["setup"] = {
            "torch": torch.__version__,
            "tensorpress": tp.__version__,
            "machine": f"{platform.machine()}, one thread, busy with other work",
        }
        write_atomically(RESULT, json.dumps(found, indent=1).encode())


def kept(path: Path, job: Any) -> dict[str, Any]:
    """Return a row of the journal, or do the job."""
    if not path.exists():
        row = job()
        write_atomically(path, json.dumps(row).encode())
        print(path.stem, row, flush=True)
    row = json.loads(path.read_text())
    assert isinstance(row, dict)
    return row


if __name__ == "__main__":
    main()
