"""The tables of `benchmarks/reconstruction.py` and `benchmarks/characters.py`, for the docs."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
KINDS = ("weights", "norms", "refit", "inputs", "linear", "nonlinear")


def speedups_table() -> str:
    """Return the errors by speed-up, ranks and what is fitted, and after a short training."""
    found = read("reconstruction")
    rows = [
        f"| network, its error % | MACs | ranks | {' | '.join(KINDS)} |",
        f"|---|--:|---|{'--:|' * len(KINDS)}",
    ]
    for name, tables in networks(found):
        title = f"{name}, {tables['dense']:.2f}"
        for (speedup, selection), group in grouped(tables["speedups"], "speedup", "selection"):
            errors = {row["kind"]: with_tuned(row) for row in group}
            ranks = "by responses" if selection else "uniform"
            cells = [title, f"1/{speedup:g}", ranks, *(errors[kind] for kind in KINDS)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", setup(found)])


def forms_table() -> str:
    """Return low rank, low rank + sparse and few channels at equal parameters."""
    found = read("reconstruction")
    rows = [
        "| network, its error % | form | parameters | MACs | time / dense | weights | linear "
        "| nonlinear |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, tables in networks(found):
        title = f"{name}, {tables['dense']:.2f}"
        for (_, form), group in grouped(tables["forms"], "share", "form"):
            times = [row["time_ratio"] for row in group if "time_ratio" in row]
            fits = {row["kind"]: row for row in group if "kind" in row}
            row = fits["weights"]
            cells = [title, form, f"{row['params']:,}", f"{row['macs'] / 1e6:.1f}M"]
            cells += [f"{times[0]:.2f}", *(with_tuned(fits[kind]) for kind in fits)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", setup(found)])


def costs_table() -> str:
    """Return what pressing to a third takes, in passes over the same images."""
    found = read("reconstruction")
    rows = [
        "| network | a pass, s | memory, MB | "
        + " | ".join(f"{kind}: passes, MB more" for kind in KINDS[1:])
        + " |",
        f"|---|--:|--:|{'--:|' * (len(KINDS) - 1)}",
    ]
    for name, tables in networks(found):
        costs = {row["way"]: row for row in tables["costs"]}
        once = costs.pop("pass")
        cells = [name, f"{once['seconds']:.1f}", f"{once['peak_mb']:,.0f}"]
        cells += [
            f"{row['seconds'] / once['seconds']:.1f}, {row['peak_mb'] - once['peak_mb']:,.0f}"
            for row in costs.values()
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", setup(found)])


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
        "| calibrated on | warnings | `inputs` | `linear` |",
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


def networks(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the networks of the result, but not how it was made."""
    return [(name, tables) for name, tables in found.items() if name != "setup"]


def grouped(rows: list[dict[str, Any]], *keys: str) -> list[tuple[tuple[Any, ...], list[Any]]]:
    """Return rows that are alike in some values and follow each other."""
    alike = groupby(rows, key=lambda row: tuple(row[key] for key in keys))
    return [(key, list(group)) for key, group in alike]


def with_tuned(row: dict[str, Any]) -> str:
    """Return the error of a row, and that after fine-tuning if there was any."""
    tuned = f" → {row['tuned_error']:.2f}" if "tuned_error" in row else ""
    return f"{row['error']:.2f}{tuned}"


def setup(found: dict[str, Any]) -> str:
    """Return what a result was measured with."""
    return f"{found['setup']['machine']}, torch {found['setup']['torch']}."
