"""The table of language models, from results/language_models.json."""

import json
from pathlib import Path
from statistics import mean, stdev

RESULTS = Path(__file__).parents[2] / "results" / "language_models.json"


def language_models_table() -> str:
    """Return the perplexity of every method at equal parameters of the Linear layers."""
    rows = json.loads(RESULTS.read_text())["rows"]
    keeps = sorted({row["keep"] for row in rows if row["method"] != "dense"}, reverse=True)
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "dense"))
    [dense] = {row["perplexity"] for row in rows if row["method"] == "dense"}
    heads = [f"{100 * keep:.0f} %" for keep in keeps]
    lines = [
        f"| method (dense: {dense:.1f}) | {' | '.join(heads)} |",
        f"|---|{'--:|' * len(keeps)}",
    ]
    for method in methods:
        cells = [
            _spread([r["perplexity"] for r in rows if (r["method"], r["keep"]) == (method, keep)])
            for keep in keeps
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    middle = mean(values)
    text = f"{middle:,.0f}" if middle >= 1000 else f"{middle:.1f}"
    return text if len(values) < 2 else f"{text} ± {stdev(values):.1f}"
