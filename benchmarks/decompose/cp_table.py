"""The table of CP decompositions beside tensorly's, from the results of ``cp.py``."""

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[2] / "results" / "cp_vs_tensorly.json"


def cp_table() -> str:
    """Return a row a kernel and a column a rank: three errors, and how much sooner we are there."""
    results = json.loads(RESULT.read_text())
    kernels: dict[str, dict[int, str]] = {}
    for point, found in results["points"].items():
        kernel, _, rank = point.rpartition(", rank ")
        kernels.setdefault(kernel, {})[int(rank)] = _cell(found)
    ranks = sorted({rank for cells in kernels.values() for rank in cells})
    rows = [
        f"| kernel | {' | '.join(f'rank {rank}' for rank in ranks)} |",
        "|---|" + "---|" * len(ranks),
    ]
    rows += [
        f"| {kernel} | {' | '.join(cells.get(rank, '') for rank in ranks)} |"
        for kernel, cells in kernels.items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n".join([*rows, "", f"{results['device']}, {versions}."])


def _cell(found: dict[str, Any]) -> str:
    """Return errors of ``cp_als`` / ``cp_nls`` / tensorly at its best, and the least speed-ups."""
    errors = [
        found["als"]["error"],
        found["nls"]["error"] if "nls" in found else None,
        min(peer["error"] for peer in found["parafac"].values()),
    ]
    texts = ["–" if error is None else f"{error:#.3g}" for error in errors]
    least = [
        min(peer[key] for peer in found["parafac"].values()) for key in ("speedup", "numpy_speedup")
    ]
    return f"{' / '.join(texts)}<br>{least[0]:.1f}× ({least[1]:.1f}×)"
