"""A plan as a table of text."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.utils.formatting import format_shape

LEFT = ("layer", "scheme", "weight", "modes", "ranks")
"""Columns of text; those of `RIGHT` are numbers."""

RIGHT = ("dense", "stored", "dense MACs", "MACs", "error")

NAMED = 12
"""Largest number of layers named for one reason."""


VECTOR = "a vector, such as a bias or the scale of a norm: nothing to press"
"""The reason of biases and norms for staying dense, which tables leave out."""


class Sums(NamedTuple):
    """A row of totals: parameters and MACs, dense and pressed; None if unknown."""

    name: str
    dense: int | None
    stored: int | None
    dense_macs: int | None
    macs: int | None


def layer_table(layers: Sequence[LayerPlan], sums: Sequence[Sums]) -> list[str]:
    """Return lines of text: headings, one row per layer, and rows of totals.

    Empty columns are left out: modes if no layer is reshaped, MACs without inputs, and errors if
    none was predicted.

    Examples
    --------
    >>> from torch import nn
    >>> from tensorpress.schemes.layer_plan import LayerPlan
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> layer = LayerPlan("fc", "channel_svd", describe_layer(nn.Linear(30, 20)), (4,))
    >>> for line in layer_table([layer], [Sums("total", 600, 200, None, None)]):
    ...     print(line)
    layer  scheme       weight  ranks  dense  stored
    fc     channel_svd  20×30   4        600     200
    total                                600     200
    """
    rows = [_row(layer) for layer in layers]
    rows += [{"layer": x.name, **dict(zip(RIGHT, map(_number, x[1:]), strict=False))} for x in sums]
    used = [key for key in (*LEFT, *RIGHT) if any(row.get(key) for row in rows)]
    rows.insert(0, dict(zip(used, used, strict=True)))
    widths = {key: max(len(row.get(key, "")) for row in rows) for key in used}
    return [
        "  ".join(
            f"{row.get(key, ''):{'<' if key in LEFT else '>'}{widths[key]}}" for key in used
        ).rstrip()
        for row in rows
    ]


def format_unpressed(unpressed: Mapping[str, str]) -> list[str]:
    """Return a line of text per reason for staying dense, with the names of its layers.

    Examples
    --------
    >>> format_unpressed({"a": "it is small", "b": "it is small"})
    ['kept dense: a, b (it is small)']
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in unpressed.items():
        reasons.setdefault(reason, []).append(name or "the model itself")
    lines = []
    for reason, names in reasons.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(f"kept dense: {', '.join(names[:NAMED])}{more} ({reason})")
    return lines


def _row(layer: LayerPlan) -> dict[str, str]:
    row = {
        "layer": layer.name,
        "scheme": layer.scheme,
        "weight": format_shape(layer.shape),
        "modes": format_shape(layer.modes),
        "ranks": layer.format_ranks(),
        "dense": _number(layer.dense_params),
        "stored": _number(layer.factor_params),
    }
    if layer.calls:
        row |= {"dense MACs": _number(layer.dense_macs), "MACs": _number(layer.macs)}
    return row if layer.error is None else row | {"error": f"{100 * layer.error:.1f} %"}


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
