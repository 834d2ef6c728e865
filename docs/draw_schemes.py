"""The pictures of the schemes' pages: `python docs/draw_schemes.py` writes docs/assets/*.svg.

A chain is drawn from left to right: bars are channels, as tall as there are many, and the layers
between them have their kernel above and the number of their weights below. Factors of a rebuilt
weight are drawn as a tensor network: circles are factors, lines between them are ranks, and loose
lines are the axes of the weight.
"""

from html import escape
from itertools import pairwise
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"

Bar = tuple[str, int]
"""The name of a number of channels, and how tall its bar is."""

Layer = tuple[str, str]
"""The kernel of a layer, and the number of its weights."""

DENSE: list[Bar | Layer] = [("n", 84), ("k₁×k₂", "n·k₁·k₂·m"), ("m", 114)]

CHAINS: dict[str, dict[str, list[Bar | Layer]]] = {
    "channel_svd": {
        "dense": DENSE,
        "channel_svd": [("n", 84), ("k₁×k₂", "n·k₁·k₂·r"), ("r", 42), ("1×1", "r·m"), ("m", 114)],
        "tucker1_in": [("n", 84), ("1×1", "n·r"), ("r", 42), ("k₁×k₂", "r·k₁·k₂·m"), ("m", 114)],
    },
    "spatial_svd": {
        "dense": DENSE,
        "spatial_svd": [("n", 84), ("k₁×1", "n·k₁·r"), ("r", 48), ("1×k₂", "r·k₂·m"), ("m", 114)],
        "spatial_svd_horizontal": [
            *[("n", 84), ("1×k₂", "n·k₂·r"), ("r", 48), ("k₁×1", "r·k₁·m"), ("m", 114)]
        ],
    },
    "spatial_channel_svd": {
        "dense": DENSE,
        "spatial_channel_svd": [
            *[("n", 84), ("k₁×1", "n·k₁·r₁"), ("r₁", 54), ("1×k₂", "r₁·k₂·r₂")],
            *[("r₂", 42), ("1×1", "r₂·m"), ("m", 114)],
        ],
    },
    "tucker2": {
        "dense": DENSE,
        "tucker2": [
            *[("n", 84), ("1×1", "n·r₁"), ("r₁", 38), ("k₁×k₂", "r₁·k₁·k₂·r₂")],
            *[("r₂", 50), ("1×1", "r₂·m"), ("m", 114)],
        ],
    },
    "cp": {
        "dense": DENSE,
        "cp": [
            *[("n", 84), ("1×1", "n·r"), ("r", 50), ("k₁×1", "depthwise, k₁·r"), ("r", 50)],
            *[("1×k₂", "depthwise, k₂·r"), ("r", 50), ("1×1", "r·m"), ("m", 114)],
        ],
    },
    "tensor_train": {
        "dense": DENSE,
        "tensor_train": [
            *[("n", 84), ("1×1", "n·r₁"), ("r₁", 42), ("k₁×1", "r₁·k₁·r₂"), ("r₂", 48)],
            *[("1×k₂", "r₂·k₂·r₃"), ("r₃", 48), ("1×1", "r₃·m"), ("m", 114)],
        ],
    },
    "channel_pruning": {
        "dense": DENSE,
        "channel_pruning": [
            *[("n", 84), ("pick", "c indices"), ("c", 48), ("k₁×k₂", "c·k₁·k₂·m"), ("m", 114)]
        ],
    },
    "low_rank_sparse": {
        "dense": DENSE,
        "A": [("n", 84), ("pick", "c indices"), ("c", 36), ("k₁×k₂", "c·k₁·k₂·m"), ("m", 114)],
        "+ B": [("n", 84), ("k₁×k₂", "n·k₁·k₂·r"), ("r", 36), ("1×1", "r·m"), ("m", 114)],
    },
}

Node = tuple[str, int, int]
"""A factor's name, and where it stands."""

Leg = tuple[int, str, int, int]
"""A loose line: its node, the name of its axis, and the direction that it goes to."""

NETWORKS: dict[str, tuple[list[Node], list[tuple[int, int, str]], list[Leg]]] = {
    "svd_weight": (
        [("U", 160, 60), ("V", 300, 60)],
        [(0, 1, "r")],
        [(0, "m", -70, 0), (1, "n·k₁·k₂", 70, 0)],
    ),
    "tt_weight": (
        [("G₀", 110, 60), ("G₁", 230, 60), ("G₂", 350, 60), ("G₃", 470, 60)],
        [(0, 1, "r₀"), (1, 2, "r₁"), (2, 3, "r₂")],
        [
            (0, "k₁·k₂", 0, 70),
            *[(1, "m₁", -28, 70), (1, "n₁", 28, 70)],
            *[(2, "m₂", -28, 70), (2, "n₂", 28, 70)],
            *[(3, "m₃", -28, 70), (3, "n₃", 28, 70)],
        ],
    ),
    "tensor_train_matrix": (
        [("G₁", 110, 60), ("G₂", 230, 60), ("G₃", 350, 60)],
        [(0, 1, "r₁"), (1, 2, "r₂")],
        [
            *[(0, "m₁", -28, 70), (0, "n₁", 28, 70)],
            *[(1, "m₂", -28, 70), (1, "n₂", 28, 70)],
            *[(2, "m₃", -28, 70), (2, "n₃", 28, 70)],
        ],
    ),
    "ada_tucker": (
        [("C", 250, 110), ("M₁", 130, 110), ("M₂", 250, 40), ("M₃", 370, 110), ("M₄", 250, 180)],
        [(0, 1, "k₁"), (0, 2, "k₂"), (0, 3, "k₃"), (0, 4, "k₄")],
        [(1, "n₁", -75, 0), (2, "n₂", 75, 0), (3, "n₃", 75, 0), (4, "n₄", 75, 0)],
    ),
}

STYLE = """<style>
text { font: 14px system-ui, sans-serif; fill: #1c2333; text-anchor: middle }
.small { font-size: 12px; fill: #5a6275 } .row { text-anchor: start; font-weight: 600 }
.bar { fill: #3f51b5 } .layer { fill: #c9d1f2 } .factor { fill: #c9d1f2; stroke: #3f51b5 }
line { stroke: #3f51b5; stroke-width: 2 }
</style>"""

GAP = 118  # between two bars
ROW = 172  # between two chains


def main() -> None:
    """Write all pictures."""
    for name, picture in pictures().items():
        (ASSETS / f"{name}.svg").write_text(picture, encoding="utf-8")


def pictures() -> dict[str, str]:
    """Return the pictures by name."""
    chains = {name: draw_chains(name, rows) for name, rows in CHAINS.items()}
    return chains | {name: draw_network(name, *parts) for name, parts in NETWORKS.items()}


def draw_chains(name: str, rows: dict[str, list[Bar | Layer]]) -> str:
    """Return a picture of chains of layers, one below the other."""
    parts: list[str] = []
    for number, (title, chain) in enumerate(rows.items()):
        middle = 94 + ROW * number
        parts.append(text(16, middle - 70, title, "row"))
        bars = [(str(label), int(height)) for label, height in chain[::2]]
        for place, (label, height) in enumerate(bars):
            x = 30 + GAP * place
            parts.append(
                f'<rect class="bar" x="{x}" y="{middle - height / 2:g}" width="10" '
                f'height="{height}" rx="2"/>'
            )
            parts.append(text(x + 5, middle + height / 2 + 15, label))
        for place, ((_, left), (_, right)) in enumerate(pairwise(bars)):
            kernel, weights = (str(part) for part in chain[2 * place + 1])
            x = 30 + GAP * place
            corners = [(x + 13, -left), (x + GAP - 3, -right), (x + GAP - 3, right), (x + 13, left)]
            points = " ".join(f"{a},{middle + b / 2:g}" for a, b in corners)
            parts.append(f'<polygon class="layer" points="{points}"/>')
            parts.append(text(x + GAP / 2 + 5, middle - 1, kernel))
            parts.append(text(x + GAP / 2 + 5, middle + 14, weights, "small"))
    longest = max(len(chain) // 2 for chain in rows.values())
    return svg(name, 70 + GAP * longest, ROW * len(rows) + 8, parts)


def draw_network(
    name: str, nodes: list[Node], lines: list[tuple[int, int, str]], legs: list[Leg]
) -> str:
    """Return a picture of factors and of the axes that they share."""
    parts: list[str] = []
    for first, second, label in lines:
        (_, x, y), (_, x2, y2) = nodes[first], nodes[second]
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x2}" y2="{y2}"/>')
        beside = 16 if x == x2 else 0
        parts.append(text((x + x2) / 2 + beside, (y + y2) / 2 - (0 if beside else 7), label))
    for node, label, dx, dy in legs:
        _, x, y = nodes[node]
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + dx}" y2="{y + dy}"/>')
        side = 0 if dy else (1 if dx > 0 else -1) * (10 + 4 * len(label))
        parts.append(text(x + dx + side, y + dy + (16 if dy else 5), label))
    for label, x, y in nodes:
        parts.append(f'<circle class="factor" cx="{x}" cy="{y}" r="22"/>')
        parts.append(text(x, y + 5, label))
    right = max(x for _, x, _ in nodes) + 150
    bottom = max(y for _, _, y in nodes) + (100 if any(dy for *_, dy in legs) else 40)
    return svg(name, right, bottom, parts)


def text(x: float, y: float, content: str, style: str = "") -> str:
    """Return a text of a style of STYLE."""
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:g}" y="{y:g}">{escape(content)}</text>'


def svg(name: str, width: int, height: int, parts: list[str]) -> str:
    """Return a whole picture on a white ground."""
    ground = f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img"><title>{name}</title>'
    )
    return "\n".join([head, STYLE, ground, *parts, "</svg>", ""])


if __name__ == "__main__":
    main()
