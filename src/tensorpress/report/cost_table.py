"""Tables of plans and models for the terminal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rich.table import Table
from rich.text import Text

from tensorpress.report import formatting
from tensorpress.report.tables import Name, footnote_mark, plain_table


@dataclass(frozen=True)
class PlanRow:
    """A layer of a plan.

    Attributes
    ----------
    name : str
        Name of the layer.
    scheme : str
        Name of its scheme.
    weight : tuple of int
        Shape of its weight.
    modes : tuple of int
        Modes of the reshaped weight; empty if it is not reshaped.
    ranks : tuple of int
        Ranks of the scheme.
    dense_params, params : int
        Parameters of the weight before and after pressing.
    dense_macs, macs : int or None
        MACs per example before and after pressing; None if unknown.
    error : float or None
        Relative error ‖W − Ŵ‖ / ‖W‖; None if unknown.
    """

    name: str
    scheme: str
    weight: tuple[int, ...]
    modes: tuple[int, ...]
    ranks: tuple[int, ...]
    dense_params: int
    params: int
    dense_macs: int | None = None
    macs: int | None = None
    error: float | None = None


@dataclass(frozen=True)
class ModelRow:
    """A layer of a dense model; ``note`` is the reason if it cannot be pressed."""

    name: str
    kind: str
    weight: tuple[int, ...]
    params: int
    macs: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """A cost of a model before and after pressing; ``kind`` is a key of `COSTS`."""

    kind: str
    dense: float | None
    pressed: float | None


COSTS: Mapping[str, tuple[str, Callable[[float | None], str]]] = {
    "params": ("parameters", formatting.count),
    "macs": ("MACs", formatting.count),
    "bytes": ("bytes", formatting.count),
    "latency_ms": ("latency, ms", partial(formatting.decimal, digits=2)),
}
"""The label of each kind of cost, and the function that formats it."""


def plan_table(rows: Sequence[PlanRow]) -> Table:
    """Return a table of a plan's layers, with counts and their fraction of the dense layer's.

    Long names break at their dots. Columns without content are left out: modes if no weight is
    reshaped, MACs and errors if they are unknown.

    Examples
    --------
    >>> from rich.console import Console
    >>> row = PlanRow("fc", "channel_svd", (500, 800), (), (50,), 400_000, 65_000)
    >>> Console(width=80).print(plan_table([row]))  # doctest: +NORMALIZE_WHITESPACE
                                            pressed
    layer  scheme       weight   ranks       params
    ───────────────────────────────────────────────
    fc     channel_svd  500×800  50     65.0k  16 %
    """
    table = plain_table()
    table.add_column("layer")
    for heading in ("scheme", "weight"):
        table.add_column(heading, no_wrap=True)
    reshaped = any(row.modes for row in rows)
    if reshaped:
        table.add_column("modes", overflow="fold")
    table.add_column("ranks", no_wrap=True)
    counts: list[tuple[str, Callable[[PlanRow], str]]] = [
        ("pressed\nparams", lambda row: _count_and_share(row.params, row.dense_params))
    ]
    if any(row.macs is not None for row in rows):
        counts.append(("pressed\nMACs", lambda row: _count_and_share(row.macs, row.dense_macs)))
    if any(row.error is not None for row in rows):
        counts.append(("rel.\nerror", lambda row: formatting.decimal(row.error, 3)))
    for heading, _ in counts:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Name(row.name),
            Text(row.scheme),
            formatting.shape(row.weight),
            *([formatting.shape(row.modes)] if reshaped else []),
            formatting.shape(row.ranks),
            *(count(row) for _, count in counts),
        )
    return table


def _count_and_share(value: int | None, dense: int | None) -> str:
    """Return a count and its fraction of the dense count as text."""
    if value is None or not dense:
        return formatting.MISSING
    return f"{formatting.short_count(value)} {f'{100 * value / dense:.0f} %':>5}"


def cost_table(costs: Sequence[Cost]) -> Table:
    """Return a table with a row for each cost: dense, pressed, and their ratio.

    Examples
    --------
    >>> from rich.console import Console
    >>> Console(width=80).print(cost_table([Cost("params", 405_510, 66_020)]))
                  dense  pressed  ratio
    ───────────────────────────────────
    parameters  405,510   66,020  6.14×
    """
    table = plain_table()
    table.add_column("")
    for name in ("dense", "pressed", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for cost in costs:
        label, write = COSTS[cost.kind]
        ratio = cost.dense / cost.pressed if cost.dense and cost.pressed else None
        table.add_row(label, write(cost.dense), write(cost.pressed), formatting.ratio(ratio))
    return table


def model_table(rows: Sequence[ModelRow]) -> Table:
    """Return a table of the layers of a dense model; remarks say why some cannot be pressed.

    Examples
    --------
    >>> from rich.console import Console
    >>> Console(width=80).print(model_table([ModelRow("fc", "Linear", (500, 800), 400_500)]))
    layer  kind    weight   params
    ──────────────────────────────
    fc     Linear  500×800    400k
    """
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    caption = "\n".join(f"{footnote_mark(notes, note)} {note}" for note in notes)
    table = plain_table(caption=Text(caption, style="dim") if notes else None)
    has_macs = any(row.macs is not None for row in rows)
    for heading in ("layer", "kind", "weight"):
        table.add_column(heading, overflow="fold")
    for heading in ("params", "MACs")[: 1 + has_macs]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Name(row.name + footnote_mark(notes, row.note)),
            Text(row.kind),
            formatting.shape(row.weight),
            formatting.short_count(row.params),
            *([formatting.short_count(row.macs)] if has_macs else []),
            style="dim" if row.note else "",
        )
    return table
