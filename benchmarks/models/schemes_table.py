"""The table of which scheme takes which layer, from what the schemes themselves answer."""

from torch import nn

from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.registry import rank_schemes

LAYERS: dict[str, nn.Module] = {
    "Linear": nn.Linear(64, 32),
    "Embedding": nn.Embedding(1000, 32),
    "Conv1d": nn.Conv1d(16, 32, 3),
    "Conv2d": nn.Conv2d(16, 32, 3),
    "Conv3d": nn.Conv3d(16, 32, 3),
    "ConvTranspose1d": nn.ConvTranspose1d(16, 32, 3),
    "ConvTranspose2d": nn.ConvTranspose2d(16, 32, 3),
    "ConvTranspose3d": nn.ConvTranspose3d(16, 32, 3),
    "grouped conv": nn.Conv2d(16, 32, 3, groups=4),
    "depthwise conv": nn.Conv2d(32, 32, 3, groups=32),
}
"""A sample of every kind of layer."""

NUMBERS = ("¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹", "¹⁰", "¹¹", "¹²")


def schemes_table() -> str:
    """Return a row a scheme: ✓ for a kind of layer that it takes, a footnote for one it refuses."""
    notes: list[str] = []
    rows = [f"| scheme | form | {' | '.join(LAYERS)} |", "|---|---|" + ":-:|" * len(LAYERS)]
    for name, scheme in rank_schemes().items():
        cells = []
        for layer in LAYERS.values():
            reason = scheme.refusal(describe_layer(layer))
            if reason is not None and reason not in notes:
                notes.append(reason)
            cells.append("✓" if reason is None else NUMBERS[notes.index(reason)])
        rows.append(f"| `{name}` | {scheme.form} | {' | '.join(cells)} |")
    footnotes = [f"{number} {note}" for number, note in zip(NUMBERS, notes, strict=False)]
    return "\n".join([*rows, "", "; ".join(footnotes) + "."])
