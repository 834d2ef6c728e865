"""The tables of `benchmarks/reconstruction.py` and `benchmarks/characters.py`, for the docs."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tensorpress.measure import count_macs, count_params
from tensorpress.models import zoo

RESULTS = Path(__file__).parents[2] / "results"
FULL_WIDTH = {
    "low rank": "vgg16-low-rank",
    "low rank + sparse": "vgg16-sparse",
    "channel pruning": "vgg16-pruned",
}
"""The recipe of each form."""

KINDS = ("weights", "norms", "refit", "inputs", "linear", "nonlinear")


def speedups_table() -> str:
    """Return the errors by speed-up, ranks and what is fitted, and after a short training."""
    rows = [
        f"| network, its error % | MACs | ranks | {' | '.join(KINDS)} |",
        f"|---|--:|---|{'--:|' * len(KINDS)}",
    ]
    for name, tables in networks("speedups"):
        title = f"{name}, {tables['dense']:.2f}"
        found = tables["speedups"].values()
        for (speedup, selection), group in grouped(found, "speedup", "selection"):
            errors = errors_by_kind(group)
            ranks = "by responses" if selection else "uniform"
            cells = [title, f"1/{speedup:g}", ranks, *(errors.get(kind, "") for kind in KINDS)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", setup(networks("speedups")[0][1])])


def sparse_table() -> str:
    """Return low rank, low rank + sparse and channel pruning at equal parameters."""
    rows = [
        "| network, its error % | form | parameters | MACs | time / dense | weights | linear "
        "| nonlinear |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, tables in networks("forms"):
        title, dense = f"{name}, {tables['dense']:.2f}", zoo.build(name)
        params = count_params(dense)
        macs = count_macs(dense, [torch.zeros(1, *zoo.network(name).input_shape)])
        for (_, form), (time, *fits) in grouped(tables["forms"].values(), "share", "form"):
            errors, row = errors_by_kind(fits), fits[0]
            cells = [title, form, f"1/{params / row['params']:.2f}", f"1/{macs / row['macs']:.2f}"]
            cells += [f"{time['time_ratio']:.2f}"]
            cells += [errors.get(kind, "") for kind in ("weights", "linear", "nonlinear")]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", setup(networks("forms")[0][1])])


def form_times_table() -> str:
    """Return how much faster VGG-16 gets by each form at its full width."""
    found = read("form_times")
    batches = found["batches"]
    rows = [
        f"| VGG-16 | parameters | MACs | {' | '.join(f'time, {n} images' for n in batches)} |",
        f"|---|--:|--:|{'--:|' * len(batches)}",
    ]
    for row in found["rows"]:
        ratios = (f"{ratio:.2f}×" for ratio in (row["params"], row["macs"], *row["times"]))
        rows.append(f"| {row['form']} | {' | '.join(ratios)} |")
    return "\n".join([*rows, "", setup(found)])


def full_width_table() -> str:
    """Return what VGG-16 loses by each form, pressed and trained."""
    rows = [
        "| VGG-16 | parameters | MACs | error before training % | error % | points more "
        "| file bytes | its error % |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for form, stem in FULL_WIDTH.items():
        found = read(f"{stem}/seed0/metrics")
        dense, pressed, file = found["dense"], found["pressed"], found["file"]
        cells = [f"{found['ratio'][key]:.2f}×" for key in ("params", "macs")]
        cells += [f"{pressed[key]:.2f}" for key in ("start_error", "error")]
        cells += [f"{pressed['error'] - dense['error']:+.2f}"]
        cells += [f"{file['bytes']:,}", f"{file['error']:.2f}"]
        rows.append(f"| {form} | {' | '.join(cells)} |")
    about = (
        f"Dense: error {dense['error']:.2f} %, {dense['bytes']:,} bytes. "
        f"{found['device']}, torch {found['versions']['torch']}."
    )
    return "\n".join([*rows, "", about])


def costs_table() -> str:
    """Return what pressing to a third takes, in passes over the same images."""
    rows = [
        "| network | a pass: s, MB | "
        + " | ".join(f"{kind}: passes, MB" for kind in KINDS[1:])
        + " |",
        f"|---|--:|{'--:|' * (len(KINDS) - 1)}",
    ]
    for name, tables in networks("costs"):
        costs = dict(tables["costs"])
        once = costs.pop("pass")
        cells = [name, f"{once['seconds']:.1f}, {once['more_mb']:,.0f}"]
        cells += [
            f"{row['seconds'] / once['seconds']:.1f}, {row['more_mb']:,.0f}"
            for row in costs.values()
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", setup(networks("costs")[0][1])])


def characters_table() -> str:
    """Return the perplexities of the Transformer."""
    found = read("characters")
    rows = [
        "| removed | ranks | by weights | `inputs` | `linear` |",
        "|--:|---|--:|--:|--:|",
    ]
    usual = [row for row in found["rows"] if "calibration" not in row]
    for (removed, ranks), group in grouped(usual, "removed", "ranks"):
        by_kind = {row["kind"]: f"{row['perplexity']:.3f}" for row in group}
        cells = [by_kind.get(kind, "") for kind in ("weights", "inputs", "linear")]
        rows.append(f"| {removed} % | {ranks} | {' | '.join(cells)} |")
    rows += [
        "",
        "| calibrated on, 40 % removed | warnings | `inputs` | `linear` |",
        "|---|--:|--:|--:|",
    ]
    few = [row for row in found["rows"] if "calibration" in row]
    for (data,), group in grouped(few, "calibration"):
        cells = [f"{row['perplexity']:.3f}" for row in group]
        rows.append(f"| {data} | {group[0]['warnings']} | {' | '.join(cells)} |")
    dense = found["dense"]
    about = (
        f"{found['params']:,} parameters, {found['steps']:,} steps of training; dense "
        f"{dense['test']:.3f} on the test part ({dense['train']:.3f} on training text)."
    )
    return "\n".join([*rows, "", about, setup(found)])


def read(name: str) -> dict[str, Any]:
    """Return a result file."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


@cache
def networks(part: str) -> list[tuple[str, dict[str, Any]]]:
    """Return what was measured of every network of which a part is done, the smallest first."""
    paths = (RESULTS / "reconstruction").glob("*.json")
    found = [(path.stem, json.loads(path.read_text())) for path in paths]
    done = [one for one in found if part in one[1]["done"]]
    return sorted(done, key=lambda one: min(r["params"] for r in one[1]["speedups"].values()))


def grouped(rows: Iterable[dict[str, Any]], *keys: str) -> list[tuple[tuple[Any, ...], list[Any]]]:
    """Return rows that are alike in some values."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


def errors_by_kind(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the errors by what was fitted, with those after fine-tuning where there was any."""
    errors: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["epochs"]):
        before = f"{errors[row['kind']]} → " if row["epochs"] else ""
        errors[row["kind"]] = f"{before}{row['error']:.2f}"
    return errors


def setup(found: dict[str, Any]) -> str:
    """Return what a result was measured with."""
    return f"{found['setup']['machine']}, torch {found['setup']['torch']}."
