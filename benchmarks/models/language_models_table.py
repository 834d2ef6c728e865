"""The tables of language models, from results/language_models.json."""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

TOKENS = 16_384
"""Of the calibration data of the table of methods."""

RESULTS = Path(__file__).parents[2] / "results" / "language_models.json"


def language_models_table() -> str:
    """Return the perplexity of every method at equal parameters of the Linear layers."""
    rows = [row for row in _rows() if row["calibration"] == TOKENS]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return _table("method", {m: [row for row in rows if row["method"] == m] for m in methods})


def calibration_tokens_table() -> str:
    """Return the perplexity of our method by the number of calibration tokens, draw 0."""
    rows = [row for row in _rows() if row["method"] == "ours" and row["draw"] == 0]
    sizes = sorted({row["calibration"] for row in rows})
    cases = {f"{size:,}": [row for row in rows if row["calibration"] == size] for size in sizes}
    return _table("tokens", cases)


def _rows(*, dense: bool = False) -> list[dict[str, Any]]:
    rows = json.loads(RESULTS.read_text())["rows"]
    return [row for row in rows if (row["method"] == "dense") == dense]


def _table(title: str, cases: dict[str, list[dict[str, Any]]]) -> str:
    perplexity = mean(row["perplexity"] for row in _rows(dense=True))
    keeps = sorted({row["keep"] for rows in cases.values() for row in rows}, reverse=True)
    heads = [f"{100 * keep:.0f} %" for keep in keeps]
    lines = [
        f"| {title} (dense: {perplexity:.1f}) | {' | '.join(heads)} |",
        f"|---|{'--:|' * len(keeps)}",
    ]
    for name, rows in cases.items():
        cells = [_spread([r["perplexity"] for r in rows if r["keep"] == keep]) for keep in keeps]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    middle = mean(values)
    text = f"{middle:,.0f}" if middle >= 1000 else f"{middle:.1f}"
    return text if len(values) < 2 else f"{text} ± {stdev(values):.1f} ({len(values)} draws)"
