"""The tables of `benchmarks/coding.py`, for the docs."""

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[2] / "results" / "coding.json"
_CODERS = ("adaptive", "static", "huffman", "zstd -19", "xz -9")


def coding_table() -> str:
    """Return what the same integers take by every coder, and what a file has beside its values."""
    found = json.loads(RESULT.read_text())
    rows = [
        "| integers | values | zeros % | entropy, bytes | adaptive | static range | Huffman "
        "| zstd -19 | xz -9 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    resnet = {name: case for name, case in found["ResNet-20"].items() if name != "files"}
    rows += [_row(f"ResNet-20, {name}", case) for name, case in resnet.items()]
    rows += [_row(f"`{name}`", case) for name, case in found["LeNets"].items()]
    rows += [
        "",
        "| file | bytes | container | header | tables | values | overhead % |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    files = {f"`{name}`": case for name, case in found["LeNets"].items()} | {
        f"ResNet-20, step {step} of the deviation": case
        for step, case in found["ResNet-20"]["files"].items()
    }
    for name, case in sorted(files.items(), key=lambda entry: int(entry[1]["file"])):
        parts = case["parts"]
        numbers = (case["file"], *(parts[p] for p in ("container", "header", "tables", "values")))
        beside = 100 * (1 - parts["values"] / case["file"])
        rows.append(f"| {name} | {' | '.join(f'{n:,}' for n in numbers)} | {beside:.1f} |")
    rows += [
        "",
        "| MB of float32 weights a second, one thread | encode | decode |",
        "|---|--:|--:|",
    ]
    rows += [
        f"| {name} | {speed['encode']:.0f} | {speed['decode']:.0f} |"
        for name, speed in found["MB of float32 a second"].items()
    ]
    return "\n".join(rows)


def _row(name: str, case: dict[str, Any]) -> str:
    cells = [f"{case['values']:,}", f"{100 * case['zeros']:.0f}", f"{case['entropy']:,.0f}"]
    cells += [f"{case[coder]:,} ({case[coder] / case['entropy']:.3f})" for coder in _CODERS]
    return f"| {name} | {' | '.join(cells)} |"
