"""ResNet-20 and ResNet-56 by `compress`, without training and with a few epochs of it.

    python -m benchmarks.accuracy.compressed_resnets --data DIRECTORY [--only CASE] [--draws 0 1 2]

Calibration takes 2,000 training images without labels, another draw of them in every repetition.
The test images are seen once, by the finished networks. Where a case has epochs, the network is
then fine-tuned on all training images, with the dense one as the teacher.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import torch
from benchmarks.accuracy.resnet56_budget import batches
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.data import load
from tensorpress.data.augment import crop_flip
from tensorpress.data.images import ImageSet
from tensorpress.measure import count_macs, count_params
from tensorpress.models import zoo
from tensorpress.models.zoo.weights import load_weights
from tensorpress.train import evaluate
from tensorpress.utils.atomic_files import write_atomically

RESULT = Path(__file__).parents[2] / "results" / "compressed_resnets.json"
CALIBRATION, BATCH = 2000, 128


@dataclass(frozen=True)
class Case:
    """A network, its budget, and the epochs of fine-tuning."""

    network: str
    budget: str
    epochs: int = 0

    @property
    def label(self) -> str:
        """How the case is called in the table."""
        network = self.network.replace("resnet", "ResNet-")
        return f"{network}, {self.budget}" + (f", {self.epochs} epochs" if self.epochs else "")


CASES = (
    Case("resnet20", "params=50%"),
    Case("resnet20", "params=33%"),
    Case("resnet56", "macs=50%"),
    Case("resnet20", "params=33%", epochs=5),
)


class Augmented:
    """All training images, shuffled, shifted and mirrored anew in every pass."""

    def __init__(self, images: ImageSet, network: str, seed: int) -> None:
        self._images, self._preprocess = images, zoo.network(network).preprocess
        self._random = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self._images) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._images), generator=self._random)
        for chosen in order.split(BATCH):
            pixels = crop_flip(self._images.images[chosen], self._random)
            yield self._preprocess(pixels), self._images.labels[chosen]


def compress(case: Case, root: Path, draw: int) -> dict[str, Any]:
    """Return costs and errors of a case."""
    dense = zoo.build(case.network).eval()
    load_weights(dense, root / "cifar10_resnet" / f"{case.network}.safetensors")
    splits = load("cifar10", root)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(draw))
    calibration = [x for x, _ in batches(splits.train.subset(order[:CALIBRATION]))]
    start = process_time()
    result = tp.compress(dense, case.budget, calibration, seed=draw)
    seconds = process_time() - start
    model: nn.Module = result.model
    if case.epochs:
        train = Augmented(splits.train, case.network, draw)
        distill = {"weight": 0.9, "temperature": 4.0}
        how = {"optimizer": "sgd", "weight_decay": 5e-4, "schedule": "cosine", "seed": draw}
        tp.finetune(
            model, train, epochs=case.epochs, lr=0.02, teacher=dense, distill=distill, **how
        )
    test = batches(splits.test)
    return {
        "case": asdict(case),
        "draw": draw,
        "dense_error": evaluate(dense, test).error,
        "error": evaluate(model, test).error,
        "params_share": count_params(model) / count_params(dense),
        "macs_share": count_macs(model, test[0][0][:1]) / count_macs(dense, test[0][0][:1]),
        "compress_cpu_seconds": seconds,
        "verdict": str(result.fidelity),
    }


def compressed_resnets_table() -> str:
    """Return a row for each case, with the mean over draws and its spread."""
    results = json.loads(RESULT.read_text())
    lines = [
        "| network and budget | parameters | MACs | points lost on the test images | draws |",
        "|---|--:|--:|--:|--:|",
    ]
    for case in CASES:
        rows = [row for row in results["rows"].values() if row["case"] == asdict(case)]
        if not rows:
            continue
        lost = [row["error"] - row["dense_error"] for row in rows]
        spread = f" ({min(lost):.2f} to {max(lost):.2f})" if len(lost) > 1 else ""
        params, macs = (mean(row[key] for row in rows) for key in ("params_share", "macs_share"))
        lines.append(
            f"| {case.label} | {100 * params:.0f} % | {100 * macs:.0f} % | "
            f"{mean(lost):.2f}{spread} | {len(rows)} |"
        )
    return "\n".join([*lines, "", f"{results['device']}, {results['versions']}."])


def main() -> None:
    """Run the cases that are missing, and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("TENSORPRESS_DATA"))
    parser.add_argument("--only", help="label of a case")
    parser.add_argument("--draws", type=int, nargs="*", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    results["device"] = f"{platform.machine()} CPU, 1 thread"
    results["versions"] = f"torch {torch.__version__}, python {platform.python_version()}"
    results["calibration"] = CALIBRATION
    for draw in arguments.draws:
        for case in CASES:
            key = f"{case.label}, draw {draw}"
            if key in results["rows"] or arguments.only not in (None, case.label):
                continue
            results["rows"][key] = compress(case, arguments.data, draw)
            print(key, json.dumps(results["rows"][key]), flush=True)
            write_atomically(RESULT, json.dumps(results, indent=1, ensure_ascii=False).encode())


if __name__ == "__main__":
    main()
