"""Write the tables of results into the docs and the README, from the committed result files.

A finished run is added with ``--collect``, which copies its metrics and its file, if it is small:

    python -m benchmarks.tables --collect runs/lenet5-ada-0 runs/lenet5-ada-1 ...
    python -m benchmarks.tables
"""

import argparse
import json
import re
import shutil
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from benchmarks.accuracy.compressed_resnets import compressed_resnets_table
from benchmarks.accuracy.reconstruction_table import (
    characters_table,
    costs_table,
    form_times_table,
    full_width_table,
    sparse_table,
    speedups_table,
)
from benchmarks.accuracy.resnet56_budget_table import resnet56_budget_table
from benchmarks.claims_table import CLAIMS, claims_table
from benchmarks.decompose.cp_table import cp_table
from benchmarks.files.coding_table import coding_table
from benchmarks.files.sweep_tables import variants_table
from benchmarks.models.architectures_table import architectures_table, kept_table
from benchmarks.models.language_models_table import language_models_table
from benchmarks.models.low_rank_low_bits import low_rank_low_bits_table
from benchmarks.models.real_models_table import (
    real_bytes_table,
    real_shapes_table,
    real_times_table,
)
from benchmarks.models.schemes_table import schemes_table
from benchmarks.speed.calibration import calibration_table
from benchmarks.speed.planning_tables import budgets_table, inference_table, latency_budgets_table
from benchmarks.speed.runtimes import runtimes_table
from benchmarks.speed.tt_conv_step import tt_conv_table

from tensorpress.runs.recipe import read_recipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

# What the paper reports, in its Tables 1 and 3 and section 4.1, for the network of a recipe.
PAPER = {
    "lenet5-ada": "nominally 2,495 B, 0.94 %",
    "lenet5-ada-2599": "2.6K params, 0.84 % raw",
    "lenet5-scada": "2.3K params, 0.94 % raw; nominally 2,278 B, 1.18 %",
    "lenet300100-ada": "nominally 4,577 B, 1.91 %",
    "lenet300100-ada-4108": "4.1K params, 1.88 % raw",
    "lenet300100-scada": "3.4K params, 2.11 % raw; nominally 3,322 B, 2.26 %",
    "fc1024-ada": "6,824 params, 1.87 % raw",
    "fc1024-tt": "7,698 params, 1.9 % raw (Novikov et al.)",
    "resnet20-ada": "the same shapes, 9.03 %; “12×” with coding",
    "lenet5-kim": "one shot of Kim et al.: layer form, 10.2× fewer MACs",
}

# Networks trained for size, and what is known of the same network.
SIZES = {
    "lenet5-1200": "MIRACLE 1,556 B, 0.96 %; its public implementation 1,140 B, 0.98 %",
    "lenet5-950": "MIRACLE's public implementation 1,140 B, 0.98 %",
    "resnet20-20x": "ADA-Tucker “12×” with coding, 9.03 %",
}

# Tensor trains of convolutions and linear layers.
TRAINS = {
    "conv-fc-tt": "82.87×, 10.6 % (dense 9.5 %)",
    "conv-fc-tt-scratch": "",
    "conv-fc-tt-naive": "worse than the proposed one",
    "conv-fc-tt-naive-chain": "",
}

LARGEST = 500_000
"""Bytes of a file that is worth its place in the repository."""


def collect(folder: Path) -> None:
    """Copy metrics and file of a finished run to ``results/RECIPE/seedN``."""
    metrics = json.loads((folder / "metrics.json").read_text())
    recipes = (ROOT / "recipes").glob("*/*.yaml")
    titles = {read_recipe(path).title: path.stem for path in recipes}
    stem = titles[metrics["recipe"]["title"]]
    target = RESULTS / stem / f"seed{metrics['seed']}"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "model.tpz"):
        if (folder / name).stat().st_size <= LARGEST:
            shutil.copyfile(folder / name, target / name)
    print(target.relative_to(ROOT))


def seeds_of(stem: str) -> list[dict[str, Any]]:
    """Return the metrics of every seed of a recipe."""
    paths = sorted((RESULTS / stem).glob("seed*/metrics.json"))
    return [json.loads(path.read_text()) for path in paths]


def results_table() -> str:
    """Return the main table, of what ADA-Tucker's paper reports too."""
    return _rows(PAPER, "the paper")


def sizes_table() -> str:
    """Return the table of networks trained for size."""
    return _rows(SIZES, "others")


def trains_table() -> str:
    """Return the table of the network of Garipov et al. as tensor trains."""
    return _rows(TRAINS, "the paper")


def _rows(known: dict[str, str], heading: str) -> str:
    """Return a row a recipe, mean ± standard deviation over its seeds, and what others report."""
    rows = [
        "| recipe | seeds | dense error % | parameters | parameter ratio | raw error % "
        f"| file bytes | file ratio | **error of the file %** | {heading} |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for stem, others in known.items():
        seeds = seeds_of(stem)
        if not seeds:
            continue
        cells = [
            f"`{_recipe(stem)}`",
            str(len(seeds)),
            _spread([m["dense"]["error"] for m in seeds], 2),
            f"{seeds[0]['pressed']['params']:,}",
            f"{seeds[0]['ratio']['params']:.1f}×",
            _spread([m["pressed"]["error"] for m in seeds], 2),
            _spread([m["file"]["bytes"] for m in seeds], 0),
            f"{mean(m['ratio']['file'] for m in seeds):.0f}×",
            f"**{_spread([m['file']['error'] for m in seeds], 2)}**",
            others,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def clips_table() -> str:
    """Return the 3-D network before and after Tucker-2 of every layer."""
    seeds = seeds_of("clips3d-tucker2")

    def row(name: str, *values: list[float], digits: tuple[int, ...] = (0, 0, 1, 2)) -> str:
        cells = [_spread(found, d) for found, d in zip(values, digits, strict=True)]
        return f"| {' | '.join([name, *cells])} |"

    def each(part: str, key: str) -> list[float]:
        return [metrics[part][key] for metrics in seeds]

    dense = [each("dense", "params"), each("dense", "macs"), each("latency", "dense_ms")]
    pressed = [each("pressed", "params"), each("pressed", "macs"), each("latency", "pressed_ms")]
    rows = [
        f"| mean of {len(seeds)} seeds | parameters | MACs a clip | ms for "
        f"{seeds[0]['latency']['batch']} clips | test error % |",
        "|---|--:|--:|--:|--:|",
        row("dense", *dense, each("dense", "error")),
        row("pressed, before fine-tuning", *pressed, each("pressed", "start_error")),
        row("pressed, after fine-tuning", *pressed, each("pressed", "error")),
    ]
    sizes, ratios = each("file", "bytes"), each("ratio", "file")
    return "\n".join(
        [
            *rows,
            "",
            f"As a file: {_spread(sizes, 0)} bytes, {mean(ratios):.1f}× smaller than the dense "
            f"parameters, error {_spread(each('file', 'error'), 2)} %. {seeds[0]['device']}.",
        ]
    )


def training_table() -> str:
    """Return what a training step with rebuilt weights costs."""
    results = json.loads((RESULTS / "training_step.json").read_text())
    rows = [
        "| network | batch | dense step ms | pressed / dense | rebuilt by tensorly / dense |",
        "|---|--:|--:|--:|--:|",
    ]
    rows += [
        f"| {name} | {case['batch']} | {case['dense_ms']:.1f} | "
        f"{case['pressed_over_dense']:.2f} | {case['tensorly_over_dense']:.2f} |"
        for name, case in results.items()
        if "batch" in case
    ]
    return "\n".join([*rows, "", f"{results['device']}, torch {results['versions']['torch']}."])


def decompose_seconds(
    results: dict[str, Any],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return seconds of EVBMF ranks and Tucker-2, a side each: of whole networks, and of kernels.

    A shape of a network counts as often as it occurs; networks not wholly measured are left out.
    """
    layers = {name: _sides(layer) for name, layer in results["layers"].items()}
    networks = {
        name: _total([(layers[shape], count) for shape, count in shapes.items()])
        for name, shapes in results["networks"].items()
        if shapes.keys() <= layers.keys()
    }
    if "trained" in results:
        trained = [(_sides(layer), 1) for layer in results["trained"].values()]
        networks["ResNet-56, trained"] = _total(trained)
    return networks, {name: layers[name] for name in results["fixed"] if name in layers}


def _sides(layer: dict[str, Any]) -> dict[str, float]:
    """Return the median seconds of the sides; theirs as it is commonly done, and a kinder way."""
    seconds = {name: median(turns) for name, turns in layer["seconds"].items()}
    svd = seconds.get("svd", seconds.get("tucker", 0.0))
    tucker = seconds.get("tucker", svd)
    return {
        "tensorly + numpy EVBMF": seconds.get("evbmf", seconds["evbmf_thin"]) + tucker,
        "the same with thin SVDs": seconds["evbmf_thin"] + min(svd, tucker),
        "ours": seconds["ours"],
        "floor": seconds["floor"],
    }


def _total(layers: list[tuple[dict[str, float], int]]) -> dict[str, float]:
    return {side: sum(layer[side] * count for layer, count in layers) for side in layers[0][0]}


def decompose_table() -> str:
    """Return what ranks and decompositions take, beside tensorly and beside the floor."""
    results = json.loads((RESULTS / "decompose" / "decompose.json").read_text())
    networks, kernels = decompose_seconds(results)
    rows = [*_against("EVBMF + Tucker-2", networks), "", *_against("one kernel", kernels)]
    for title, part in (("half of the largest ranks", "fixed"), ("a quarter, spectrum", "quarter")):
        rows += ["", *_fixed_ranks(title, results[part])]
    rows += [
        "",
        "| SVD of low rank | svd_lowrank s | ours s | by the Gram matrix s | Gram / ours "
        "| error ours / least | svd_lowrank / least |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, result in results["low_rank"].items():
        times = {side: median(turns) for side, turns in result["seconds"].items()}
        errors = result["errors"]
        rows.append(
            f"| {name} | {times['svd_lowrank']:.3g} | {times['ours']:.3g} | {times['gram']:.3g} "
            f"| {times['gram'] / times['ours']:.1f} | {errors['ours'] / errors['gram']:.4f} "
            f"| {errors['svd_lowrank'] / errors['gram']:.4f} |"
        )
    rows += ["", "| peak memory beyond the weight | tensorly MB | ours MB |", "|---|--:|--:|"]
    rows += [
        f"| {shape} | {peak['tensorly'] / 1e6:,.0f} | {peak['ours'] / 1e6:,.0f} |"
        for shape, peak in results.get("memory", {}).items()
    ]
    versions = ", ".join(f"{name} {v}" for name, v in results["settings"]["versions"].items())
    return "\n".join([*rows, "", f"{results['settings']['device']}, {versions}."])


def _fixed_ranks(title: str, shapes: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        f"| {title} | tensorly s | ours s | floor s | tensorly / ours | error ours / tensorly |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for shape, methods in shapes.items():
        for method, result in methods.items():
            theirs, ours, least = (
                median(result["seconds"][side]) for side in ("tensorly", "ours", "floor")
            )
            error = result["errors"]["ours"] / result["errors"]["tensorly"]
            rows.append(
                f"| {method}, {shape} | {theirs:.3g} | {ours:.3g} | {least:.3g} "
                f"| {theirs / ours:.1f} | {error:.4f} |"
            )
    return rows


def _against(title: str, cases: dict[str, dict[str, float]]) -> list[str]:
    rows = [
        f"| {title} | tensorly + numpy EVBMF s | ours s | floor s | tensorly / ours "
        "| with thin SVDs / ours | ours / floor |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, seconds in cases.items():
        theirs, kinder, ours, least = seconds.values()
        rows.append(
            f"| {name} | {theirs:.3g} | {ours:.3g} | {least:.3g} | {theirs / ours:.1f} "
            f"| {kinder / ours:.1f} | {ours / least:.1f} |"
        )
    return rows


def seeds_table() -> str:
    """Return every file with its size and error."""
    rows = ["| file | bytes | test error % | validation error % |", "|---|--:|--:|--:|"]
    for stem in (*PAPER, *SIZES, *TRAINS, "clips3d-tucker2"):
        rows += [
            f"| `results/{stem}/seed{m['seed']}/model.tpz` | {m['file']['bytes']:,} "
            f"| {m['file']['error']:.2f} | {m['file']['validation_error']:.2f} |"
            for m in seeds_of(stem)
        ]
    return "\n".join(rows)


def _recipe(stem: str) -> Path:
    return next((ROOT / "recipes").glob(f"*/{stem}.yaml")).relative_to(ROOT)


def _spread(values: list[float], digits: int) -> str:
    text = f"{mean(values):,.{digits}f}"
    if len(values) < 2 or len(set(values)) == 1:
        return text
    return f"{text} ± {stdev(values):,.{digits}f}"


TABLES = {
    "results": results_table,
    "sizes": sizes_table,
    "frontier": lambda: variants_table("lenet5-frontier"),
    "trains": trains_table,
    "tt_conv": tt_conv_table,
    "clips": clips_table,
    "training": training_table,
    "decompose": decompose_table,
    "seeds": seeds_table,
    "cp": cp_table,
    "schemes": schemes_table,
    "budgets": budgets_table,
    "latency_budgets": latency_budgets_table,
    "inference": inference_table,
    "runtimes": runtimes_table,
    "compressed_resnets": compressed_resnets_table,
    "resnet56": resnet56_budget_table,
    "architectures": architectures_table,
    "kept": kept_table,
    "language_models": language_models_table,
    "low_rank_low_bits": low_rank_low_bits_table,
    "real_bytes": real_bytes_table,
    "real_shapes": real_shapes_table,
    "real_times": real_times_table,
    "coding": coding_table,
    "speedups": speedups_table,
    "sparse": sparse_table,
    "form_times": form_times_table,
    "full_width": full_width_table,
    "costs": costs_table,
    "calibration": calibration_table,
    "characters": characters_table,
    "norms": lambda: variants_table("lenet5-norms"),
    **{name: partial(claims_table, claims) for name, claims in CLAIMS.items()},
    "resnet20_forms": lambda: variants_table("resnet20-forms"),
}


def fill(page: Path) -> None:
    """Replace what stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` in a page."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    text = page.read_text(encoding="utf-8")
    page.write_text(
        re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, text, flags=re.DOTALL),
        encoding="utf-8",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", nargs="*", type=Path, default=[])
    for run in parser.parse_args().collect:
        collect(run)
    for page in PAGES:
        fill(page)
