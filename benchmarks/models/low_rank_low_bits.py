"""Does a low-rank part beside few bits pay? Linear layers of a language model at equal bits.

A weight W is rounded with feedback to what the entropy coder needs for 4, 3 or 2 bits a weight
(Q), or a part of the same bits goes to factors L·R of 6 bits a value: of W, before the rest is
rounded (as in SVDQuant), or of what rounding left (as in EoRA). Errors are those of the responses,
in the second moments of the calibration data, relative to that of Q alone.

    python -m benchmarks.models.low_rank_low_bits --model SmolLM2-135M --curvature FILE

takes the file that ``benchmarks.models.language_models --curvature`` leaves, and adds rows to
results/low_rank_low_bits.json.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tensorpress.models import load_model
from tensorpress.quantize.gptq import Feedback, damp
from tensorpress.quantize.rate_distortion import coded_bits

RESULTS = Path(__file__).parents[2] / "results" / "low_rank_low_bits.json"
PRICE = 0.116
"""Of a bit, in squared steps: its worth at high rates, ln 2 / 6."""

FACTOR_BITS = 6
RANKS = (8, 32)
HALVINGS = 7
LAYERS = [
    f"model.layers.{block}.{name}"
    for block in (3, 20)
    for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj")
]


def round_at(weight: Tensor, feedback: Feedback, bits: float) -> Tensor:
    """Return a weight rounded at the finest step found whose symbols take at most so many bits."""
    low, high = -8.0, 2.0
    scale = float(weight.square().mean().sqrt())
    best = torch.zeros_like(weight)
    for _ in range(HALVINGS):
        step = scale * 2 ** ((low + high) / 2)
        symbols = feedback.round(weight / step, PRICE)
        if coded_bits(symbols) > bits:
            low = (low + high) / 2
        else:
            high, best = (low + high) / 2, symbols * step
    return best


def factors(matrix: Tensor, root: Tensor, inverse: Tensor, rank: int) -> tuple[Tensor, float]:
    """Return the best product of rounded factors in the norm ‖M H^½‖, and its bits."""
    u, s, vt = torch.linalg.svd(matrix @ root, full_matrices=False)
    split = s[:rank].sqrt()
    bits, rounded = 0.0, []
    for factor in (u[:, :rank] * split, ((split[:, None] * vt[:rank]) @ inverse).T):
        # The entropy of a Gaussian of deviation σ in steps Δ is log₂(σ/Δ) + 2.05 bits.
        step = factor.square().mean(0).sqrt() * 2 ** (2.05 - FACTOR_BITS)
        symbols = (factor / step).round()
        bits += coded_bits(symbols.int())
        rounded.append(symbols * step)
    return rounded[0] @ rounded[1].T, bits


def compare(weight: Tensor, moments: Tensor) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of bits a weight."""
    values, vectors = torch.linalg.eigh(damp(moments))
    root = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors / values.sqrt()) @ vectors.T
    feedback = Feedback.from_moments(moments)

    def error(difference: Tensor) -> float:
        return float((difference @ moments * difference).sum().clamp_min(0).sqrt())

    for bits in (4, 3, 2):
        total = bits * weight.numel()
        alone = error(weight - round_at(weight, feedback, total))
        row: dict[str, Any] = {"bits": bits, "error of Q": alone / error(weight)}
        for rank in RANKS:
            low_rank, used = factors(weight, root, inverse, rank)
            rest = round_at(weight - low_rank, feedback, total - used)
            row[f"L·R first, rank {rank}"] = error(weight - low_rank - rest) / alone
            coarse = round_at(weight, feedback, total - used)
            low_rank, _ = factors(weight - coarse, root, inverse, rank)
            row[f"Q first, rank {rank}"] = error(weight - coarse - low_rank) / alone
        yield row


def low_rank_low_bits_table() -> str:
    """Return the errors at equal bits, relative to bits alone."""
    columns = [f"{way}, rank {rank}" for rank in RANKS for way in ("L·R first", "Q first")]
    rows = [
        f"| layer | bits a weight | error of Q alone | {' | '.join(columns)} |",
        "|---|--:|--:|" + "--:|" * len(columns),
    ]
    for row in json.loads(RESULTS.read_text())["rows"]:
        values = " | ".join(f"{row[column]:.2f}×" for column in columns)
        error = f"{100 * row['error of Q']:.1f} %"
        rows.append(f"| `{row['layer']}` | {row['bits']} | {error} | {values} |")
    return "\n".join(rows)


def main() -> None:
    """Compare layer by layer, and write a row after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Folder of a model of Transformers.")
    parser.add_argument("--curvature", required=True, help="Moments of its inputs.")
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    arguments = parser.parse_args()
    inputs = torch.load(arguments.curvature, weights_only=False, mmap=True).inputs
    model = load_model(f"hf:{arguments.model}")
    rows: list[dict[str, Any]] = []
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in arguments.layers:
        moments = (inputs[name].second / inputs[name].rows).double()
        weight = model.get_submodule(name).weight.detach().double()
        for row in compare(weight, moments):
            rows.append({"model": Path(arguments.model).name, "layer": name, **row})
            print(rows[-1], flush=True)
            RESULTS.write_text(json.dumps({"rows": rows, "versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
