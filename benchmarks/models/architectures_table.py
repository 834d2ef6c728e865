"""The tables of networks that others wrote, from results/architectures.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "results" / "architectures.json"
FULL = "full rank"
ELSEWHERE = ("onnx", "export", "compile")
Rows = dict[str, dict[str, Any]]


def architectures_table() -> str:
    """Return a row a network: what a budget makes of it, and the worst differences of its rows."""
    results = json.loads(RESULTS.read_text())
    rows = [
        "| network | pressed by | layers pressed | parameters | MACs | full rank "
        "| ONNX Runtime | torch.export | torch.compile |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    rows += [_row(name, ways) for name, ways in results["rows"].items()]
    versions = ", ".join(f"{name} {v}" for name, v in results["settings"]["versions"].items())
    return "\n".join([*rows, "", f"{results['settings']['device']}; {versions}."])


def kept_table() -> str:
    """Return why layers stayed dense under the budget, and in which networks."""
    results = json.loads(RESULTS.read_text())
    found: dict[str, list[str]] = {}
    for name, ways in results["rows"].items():
        _, shown = _shown(ways)
        for reason, count in shown["kept"].items():
            found.setdefault(reason, []).append(f"{name} ({count})")
    rows = ["| kept dense because | layers |", "|---|---|"]
    rows += [f"| {reason} | {', '.join(names)} |" for reason, names in found.items()]
    return "\n".join(rows)


def _row(name: str, ways: Rows) -> str:
    title, shown = _shown(ways)
    run = [row for way, row in ways.items() if way != FULL and "failed" not in row]
    failed = [way for way, row in ways.items() if "failed" in row]
    schemes = [f"`{way}`" for way in ways if not way.startswith("auto") and way != FULL]
    budgets = [way.replace("auto, ", "") for way in ways if way.startswith("auto")]
    layers = shown["pressed"] + sum(shown["kept"].values())
    backends = {row["compile"]["backend"] for row in run if "compile" in row}
    full = ways.get(FULL)
    cells = [
        name,
        ", ".join([*schemes, *budgets]),
        f"{shown['pressed']} of {layers}" + ("" if title.startswith("auto") else f" ({title})"),
        _millions(shown["params"]),
        _millions(shown["macs"]),
        "–" if full is None else f"{full['change']:.0e}",
        *(_worst([row[key]["difference"] for row in run if key in row]) for key in ELSEWHERE),
    ]
    if not all(row["onnx"]["any_batch"] for row in run):
        cells[6] += ", one batch size"
    if "inductor" in backends:
        cells[8] += ", inductor"
    if failed:
        cells[6] += f"; failed: {', '.join(failed)}"
    return f"| {' | '.join(cells)} |"


def _shown(ways: Rows) -> tuple[str, dict[str, Any]]:
    """Return the row of a budget, or where there is none the first that did not fail."""
    sound = {way: row for way, row in ways.items() if "failed" not in row}
    budgets = [way for way in sound if way.startswith("auto")]
    way = next(iter([*budgets, *sound]))
    return way, sound[way]


def _millions(values: list[int]) -> str:
    return " → ".join(f"{value / 1e6:,.{1 if value >= 1e6 else 3}f}M" for value in values)


def _worst(differences: Sequence[float]) -> str:
    largest = max(differences, default=None)
    if largest is None:
        return "–"
    return f"{largest:.0e}" if largest else "0"
