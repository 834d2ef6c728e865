"""The tables of networks that others wrote, from results/architectures.json."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "architectures.json"
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
        for reason, count in _auto(ways)[1]["kept"].items():
            found.setdefault(reason, []).append(f"{name} ({count})")
    rows = ["| kept dense because | layers |", "|---|---|"]
    rows += [f"| {reason} | {', '.join(names)} |" for reason, names in found.items()]
    return "\n".join(rows)


def _row(name: str, ways: Rows) -> str:
    budget, auto = _auto(ways)
    run = [row for way, row in ways.items() if way != FULL]
    schemes = [f"`{way}`" for way in ways if way not in (budget, FULL)]
    layers = auto["pressed"] + sum(auto["kept"].values())
    backends = {row["compile"]["backend"] for row in run if "compile" in row}
    cells = [
        name,
        ", ".join([*schemes, budget.replace("auto, ", "")]),
        f"{auto['pressed']} of {layers}",
        _millions(auto["params"]),
        _millions(auto["macs"]),
        f"{ways[FULL]['change']:.0e}",
        *(_worst(row[key]["difference"] for row in run if key in row) for key in ELSEWHERE),
    ]
    if not all(row["onnx"]["any_batch"] for row in run):
        cells[6] += ", one batch size"
    if "inductor" in backends:
        cells[8] += ", inductor"
    return f"| {' | '.join(cells)} |"


def _auto(ways: Rows) -> tuple[str, dict[str, Any]]:
    """Return the row of a budget, and what it is called."""
    return next((way, row) for way, row in ways.items() if way.startswith("auto"))


def _millions(values: list[int]) -> str:
    return " → ".join(f"{value / 1e6:,.{1 if value >= 1e6 else 3}f}M" for value in values)


def _worst(differences: Iterable[float]) -> str:
    largest = max(differences)
    return f"{largest:.0e}" if largest else "0"
