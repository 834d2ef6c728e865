"""The table of language models, from results/language_models.json."""

import json
from pathlib import Path
from statistics import mean, stdev

TOKENS = 16_384
"""Of the calibration data of the table of methods."""

RESULTS = Path(__file__).parents[2] / "results" / "language_models.json"


def language_models_table() -> str:
    """Return the perplexity of every method at equal parameters of Linear layers, worst first."""
    rows = json.loads(RESULTS.read_text())["rows"]
    [dense] = {row["perplexity"] for row in rows if row["method"] == "dense"}
    cases: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        if row["method"] != "dense" and row["calibration"] == TOKENS:
            cases.setdefault((row["method"], row["keep"]), []).append(row["perplexity"])
    keeps = sorted({keep for _, keep in cases}, reverse=True)
    methods = sorted({method for method, _ in cases}, key=lambda m: -mean(cases[m, keeps[0]]))
    heads = [f"{100 * keep:.0f} %" for keep in keeps]
    lines = [
        f"| method (dense: {dense:.1f}) | {' | '.join(heads)} |",
        f"|---|{'--:|' * len(keeps)}",
    ]
    for method in methods:
        cells = [_spread(cases.get((method, keep), [])) for keep in keeps]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    middle = mean(values)
    text = f"{middle:,.0f}" if middle >= 1000 else f"{middle:.1f}"
    return text if len(values) < 2 else f"{text} ± {stdev(values):.1f} ({len(values)} draws)"
