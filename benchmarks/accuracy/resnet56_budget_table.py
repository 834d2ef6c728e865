"""Ways to spread a budget over ResNet-56, as a table of ``resnet56_budget.json``."""

import json
from pathlib import Path

RESULT = Path(__file__).parents[2] / "results" / "resnet56_budget.json"


def resnet56_budget_table() -> str:
    """Return a row a way and a column a scheme: error on held-out and on test images."""
    results = json.loads(RESULT.read_text(encoding="utf-8"))
    held, test = results["held_out"], results["test"]
    ways: dict[str, dict[str, str]] = {}
    for name, found in held.items():
        scheme, _, way = name.partition(": ")
        seen = f"{test[name]['error']:.2f}" if name in test else "–"
        ways.setdefault(way, {})[scheme] = f"{found['error']:.2f} / {seen}"
    schemes = list(dict.fromkeys(scheme for cells in ways.values() for scheme in cells))
    rows = [f"| budget spread by | {' | '.join(schemes)} |", "|---|" + "--:|" * len(schemes)]
    rows += [
        f"| {way} | {' | '.join(cells.get(scheme, '–') for scheme in schemes)} |"
        for way, cells in ways.items()
    ]
    count = results["recipe"]["held_out"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    told = (
        f"Error in percent on {count:,} training images that are not among "
        "those for calibration, though the network was trained on them, and of the 10,000 test "
        f"images where that was measured (dense: {results['dense']['test_error']:.2f} %)."
    )
    return "\n".join([*rows, "", f"{told} {results['device']}, {versions}."])
