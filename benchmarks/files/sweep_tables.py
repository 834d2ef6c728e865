"""The tables of `results/SWEEP/sweep.json`, for the docs."""

import json
from pathlib import Path
from typing import Any

from tensorpress.sweep.table import format_mean, sort_variants

RESULTS = Path(__file__).parents[2] / "results"


def variants_table(name: str) -> str:
    """Return the variants of a sweep by the bytes of their files, with the errors of those picked.

    Parameters
    ----------
    name
        The folder of ``sweep.json`` in ``results``.
    """
    content = read(name)
    tested = {pick["variant"]: format_mean(pick["test_error"]) for pick in content["picks"]}
    rows = [
        "| variant | bytes | validation error % | test error % |",
        "|---|--:|--:|--:|",
    ]
    for one in sort_variants(content):
        errors = f"{one['validation_error']:.2f} | {tested.get(one['name'], '')}"
        rows.append(f"| `{one['name']}` | {one['bytes']:,} | {errors} |")
    return "\n".join(rows)


def read(name: str) -> dict[str, Any]:
    """Return what a sweep found."""
    found: dict[str, Any] = json.loads((RESULTS / name / "sweep.json").read_text())
    return found
