"""Tables of docs/planning.md: how near budgets are met, and what time is saved."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "results"
COUNTED = ("params", "bytes", "macs")


def read(name: str) -> Any:
    """Return the content of a result file."""
    return json.loads((RESULTS / name).read_text())


def budgets_table() -> str:
    """Return what five networks have of a budget of half of what the dense ones have."""
    rows = read("budgets.json")["rows"]
    lines = ["| network | parameters | bytes | MACs |", "|---|--:|--:|--:|"]
    for network in dict.fromkeys(row["network"] for row in rows):
        reached = {row["kind"]: row for row in rows if row["network"] == network}
        shares = [f"{100 * reached[kind]['reached_over_allowed']:.2f} %" for kind in COUNTED]
        lines.append(f"| {network} | {' | '.join(shares)} |")
    return "\n".join(lines)


def latency_budgets_table() -> str:
    """Return the time that networks take, planned for a share of the dense network's."""
    found = read("budgets_latency.json")
    settings = found.pop("settings")
    lines = [
        "| network | budget | measured again | of the budget | MACs | parameters |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for network, budgets in found.items():
        for budget, row in budgets.items():
            lines.append(
                f"| {network} | {budget.removeprefix('latency=')} | {_percent(row['latency'])} | "
                f"{_percent(row['latency_over_budget'])} | {_percent(row['macs'])} | "
                f"{_percent(row['params'])} |"
                if "latency" in row
                else f"| {network} | {budget.removeprefix('latency=')} | out of reach | | | |"
            )
    return "\n".join([*lines, "", f"{settings['device']}; {settings['plan']}."])


def inference_table() -> str:
    """Return the speed-up of each plan, with its share of the MACs' in brackets."""
    found = read("inference_time.json")
    settings = found.pop("settings")
    lines = []
    for network, measured in found.items():
        plans = [name for name, plan in measured["plans"].items() if "macs" in plan]
        fewer = [f"{measured['plans'][name]['fewer_macs']:.1f}× fewer" for name in plans]
        lines += [
            f"| {network} | dense ms | {' | '.join(plans)} |",
            f"|---|--:|{'--:|' * len(plans)}",
            f"| MACs | | {' | '.join(fewer)} |",
        ]
        for way, times in measured["times"].items():
            cells = [_faster(times.get(name)) for name in plans]
            lines.append(f"| {way} | {times['dense_ms']:.0f} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, f"{settings['device']}; {settings['time']}; {settings['weights']}."])


def _faster(time: dict[str, float] | None) -> str:
    if time is None:
        return "–"
    return f"{time['speedup']:.2f}× ({time['share_of_theory']:.2f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
