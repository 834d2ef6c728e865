"""The tables of real trained networks, from results/real_models.json."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "results" / "real_models.json"
BYTES = ("bytes=25%", "bytes=12.5%", "int8", "int4", "dynamic int8")
SHAPES = (
    *("params=70%", "SVD params=70%", "params=50%", "SVD params=50%"),
    *("macs=70%", "macs=50%"),
)


def real_bytes_table() -> str:
    """Return the metric and the share of the bytes of every network, a column a way."""
    return _table(BYTES, "bytes")


def real_shapes_table() -> str:
    """Return the metric and the verdict of every network within budgets of shapes."""
    return _table(SHAPES, None)


def real_times_table() -> str:
    """Return seconds of compression, a pass over its data and all SVDs, and the peak memory."""
    ways = [way for way in (*BYTES, *SHAPES) if "=" in way and not way.startswith("SVD")]
    columns = ["CPU seconds", "a forward pass", "SVDs", *ways, "peak GB"]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    for name, network in _networks().items():
        rows = [network["rows"].get(way) for way in ways]
        cells = [f"{network[key]:.1f}" for key in ("forward_seconds", "svd_seconds")]
        cells += ["–" if row is None else f"{row['cpu_seconds']:.0f}" for row in rows]
        peaks = [f"{row['peak_gb']:.1f}" for row in rows if row is not None]
        cells.append(max(peaks, key=float, default="–"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _table(ways: tuple[str, ...], cost: str | None) -> str:
    lines = [f"| network | dense | {' | '.join(ways)} |", f"|---|--:|{'--:|' * len(ways)}"]
    for name, network in _networks().items():
        dense = network["rows"]["dense"]
        cells = [_cell(network["rows"].get(way), dense, cost) for way in ways]
        title = f"{name}, {network['metric']}"
        lines.append(f"| {title} | {dense['metric']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None, dense: dict[str, Any], cost: str | None) -> str:
    """Return the metric, and its share of a cost or the level of the verdict."""
    if row is None:
        return "–"
    if "failed" in row:
        return "fails"
    if cost is not None:
        return f"{row['metric']:.1f} ({100 * row[cost] / dense[cost]:.1f} %)"
    level = (row.get("verdict") or "").rpartition(": ")[2].partition(":")[0]
    return f"{row['metric']:.1f}" + (f" ({level})" if level else "")


def _networks() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text())["networks"])
