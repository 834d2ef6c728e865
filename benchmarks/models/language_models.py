"""Low rank of a language model by six methods at equal parameters of its Linear layers.

Perplexity on 4 × 512 tokens of the test part of WikiText-2, calibration on tokens of its validation
part; nothing is chosen on the test part. `--model` is a folder of Transformers, and the text is in
the folder that TENSORPRESS_DATA names. Rows are added to results/language_models.json as they come:

    python -m benchmarks.models.language_models --model SmolLM2-135M --keep 0.8 0.6 0.4
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.models.real_networks import data_folder
from torch import Tensor, nn
from torch.nn import functional

import tensorpress as tp
from tensorpress.calibrate.bfloat16 import bfloat16_passes
from tensorpress.calibrate.loss_curvature import InputMoment, LossCurvature
from tensorpress.models import load_model
from tensorpress.planning.plan import Plan
from tensorpress.sensitivity.curvature_scores import curvature_scores, linear_layers

RESULTS = Path(__file__).parents[2] / "results" / "language_models.json"
LENGTH = 512
TEST_CHARACTERS = 60_000


@dataclass
class Case:
    """A model, its calibration tokens, and the curvature of its loss."""

    model: nn.Module
    tokens: Tensor
    curvature: LossCurvature
    params: int
    linear: int

    def plan(self, keep: float, scheme: str, allocation: Any) -> Plan:
        """Return the plan that leaves a share of the parameters of the Linear layers."""
        limit = int(self.params - (1 - keep) * self.linear)
        return tp.plan(
            self.model,
            scheme=scheme,
            allocation=allocation,
            budget=f"params={limit}",
            targets=[*self.curvature.gradients],
        )

    def batches(self) -> list[dict[str, Tensor]]:
        """Return the calibration tokens as batches."""
        return [{"input_ids": rows} for rows in self.tokens.split(2)]


def replaced(curvature: LossCurvature, second: Callable[[Tensor], Tensor] | None) -> LossCurvature:
    """Return a curvature without gradients' moments, and with other moments of inputs."""
    inputs = {
        name: InputMoment(
            x.second if second is None else second(x.second / x.rows) * x.rows, x.first, x.rows
        )
        for name, x in curvature.inputs.items()
    }
    identity = {name: torch.eye(len(g)) for name, g in curvature.gradients.items()}
    return LossCurvature(inputs, identity, curvature.examples)


def plain(case: Case, keep: float) -> nn.Module:
    """Press by the SVD of the weights, with one share of the rank for all layers."""
    by = replaced(case.curvature, lambda a: torch.eye(len(a)))
    return tp.press(case.model, case.plan(keep, "channel_svd", "uniform"), calibration=by)


def activation_aware(case: Case, keep: float) -> nn.Module:
    """Press as ASVD: columns are scaled by the root of their inputs' root mean square."""
    by = replaced(case.curvature, lambda a: a.diagonal().sqrt().diag())
    return tp.press(case.model, case.plan(keep, "channel_svd", "uniform"), calibration=by)


def whitened(case: Case, keep: float) -> nn.Module:
    """Press as SVD-LLM, in the norm of the inputs' second moment."""
    by = replaced(case.curvature, None)
    return tp.press(case.model, case.plan(keep, "channel_svd", "uniform"), calibration=by)


def asymmetric(case: Case, keep: float) -> nn.Module:
    """Press by AA-SVD's objective: dense responses from the inputs that pressed layers leave."""
    plan = case.plan(keep, "channel_svd", "uniform")
    return tp.press(case.model, plan, calibration=case.batches(), reconstruct="linear")


def kfac(case: Case, keep: float) -> nn.Module:
    """Press in the norms of inputs and gradients, with ranks by one threshold."""
    return _by_curvature(case, keep, "channel_svd")


def pivoted(case: Case, keep: float) -> nn.Module:
    """Press the same with pivoted_svd: what `compress` does."""
    return _by_curvature(case, keep, "pivoted_svd")


def _by_curvature(case: Case, keep: float, scheme: str) -> nn.Module:
    scores = curvature_scores(
        case.model, case.curvature, scheme=scheme, targets=[*case.curvature.gradients]
    )
    return tp.press(case.model, case.plan(keep, scheme, scores), calibration=case.curvature)


METHODS: dict[str, Callable[[Case, float], nn.Module]] = {
    "SVD": plain,
    "ASVD": activation_aware,
    "SVD-LLM": whitened,
    "AA-SVD": asymmetric,
    "K-FAC": kfac,
    "ours": pivoted,
}
"""The methods by name, in the order of the table."""


@torch.no_grad()
def perplexity(model: nn.Module, rows: Tensor) -> float:
    """Return the exponential of the mean cross entropy of the next token of every row."""
    total = 0.0
    for ids in rows.split(1):
        with bfloat16_passes(model):
            logits = model(input_ids=ids).logits.float()
        total += float(functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
    return math.exp(total / (rows.numel() - len(rows)))


def tokens(folder: str, part: str, characters: int | None = None) -> Tensor:
    """Return rows of 512 tokens of a part of WikiText-2."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = (data_folder("text") / f"wikitext2-{part}.txt").read_text()[:characters]
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    return ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)


def load_case(folder: str, calibration: int, draw: int, cache: str | None) -> Case:
    """Return the model with its curvature, which is read from a file if there is one."""
    model = load_model(f"hf:{folder}").eval()
    model.config.use_cache = False
    rows = tokens(folder, "valid")[draw * calibration : (draw + 1) * calibration]
    linear = linear_layers(model)
    file = None if cache is None else Path(cache)
    if file is not None and file.exists():
        curvature = torch.load(file, weights_only=False)
    else:
        batches = [{"input_ids": x} for x in rows.split(2)]
        curvature = LossCurvature.collect(model, batches, names=list(linear), seed=draw)
        if file is not None:
            torch.save(curvature, file)
    params = sum(p.numel() for p in model.parameters())
    return Case(model, rows, curvature, params, sum(math.prod(x.shape) for x in linear.values()))


def main() -> None:
    """Run methods, and write a row after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Folder of a model of Transformers.")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.6, 0.4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--calibration", type=int, default=32, help="Rows of 512 tokens.")
    parser.add_argument("--draw", type=int, default=0, help="Which rows of the validation part.")
    parser.add_argument("--curvature", help="File that keeps the curvature between runs.")
    arguments = parser.parse_args()
    name = Path(arguments.model).name
    case = load_case(arguments.model, arguments.calibration, arguments.draw, arguments.curvature)
    test = tokens(arguments.model, "test", TEST_CHARACTERS)[:4]
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    content["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tensorpress": tp.__version__,
    }
    rows = content["rows"]
    key = {"model": name, "calibration": arguments.calibration * LENGTH, "draw": arguments.draw}

    def add(method: str, keep: float, model: nn.Module, seconds: float) -> None:
        params = sum(p.numel() for p in model.parameters()) - case.params + case.linear
        row = {
            **key,
            "method": method,
            "keep": keep,
            "linear_params": params,
            "perplexity": round(perplexity(model, test), 3),
            "cpu_seconds": round(seconds, 1),
        }
        same = ("model", "calibration", "draw", "method", "keep")
        rows[:] = [x for x in rows if any(x[k] != row[k] for k in same)] + [row]
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        print(row, flush=True)

    add("dense", 1.0, case.model, 0.0)
    for keep in arguments.keep:
        for method in arguments.methods:
            began = time.process_time()
            model = METHODS[method](case, keep)
            add(method, keep, model, time.process_time() - began)


if __name__ == "__main__":
    main()
