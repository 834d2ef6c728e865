"""The table of ways to spread a budget over ResNet-56, from ``resnet56_budget.json``."""

import json
from pathlib import Path

RESULT = Path(__file__).parents[1] / "results" / "resnet56_budget.json"


def resnet56_budget_table() -> str:
    """Return a row a way and a column a scheme: test error, and the share of MACs."""
    results = json.loads(RESULT.read_text(encoding="utf-8"))
    ways: dict[str, dict[str, str]] = {}
    for name, found in results["test"].items():
        scheme, _, way = name.partition(": ")
        cell = f"{found['error']:.2f} ({100 * found['macs_share']:.1f} %)"
        ways.setdefault(way, {})[scheme] = cell
    schemes = list(dict.fromkeys(scheme for cells in ways.values() for scheme in cells))
    rows = [f"| budget spread by | {' | '.join(schemes)} |", "|---|" + "---|" * len(schemes)]
    rows += [
        f"| {way} | {' | '.join(cells.get(scheme, '–') for scheme in schemes)} |"
        for way, cells in ways.items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    dense = f"Dense: {results['dense']['test_error']:.2f} %"
    return "\n".join([*rows, "", f"{dense}. {results['device']}, {versions}."])
