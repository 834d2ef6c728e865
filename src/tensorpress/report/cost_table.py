"""Tables of plans and of models, for the terminal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rich.table import Table
from rich.text import Text

from tensorpress.report import formatting
from tensorpress.report.tables import Name, mark, plain_table


@dataclass(frozen=True)
class PlanRow:
    """A layer of a plan: parameters of its weight and MACs an example, dense and pressed.

    ``modes`` are empty where the weight is not reshaped, MACs and ``error`` (‖W − Ŵ‖ / ‖W‖) None
    where nobody knows them.
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
    """A layer of a dense model; ``note`` says why it cannot be pressed, if so."""

    name: str
    kind: str
    weight: tuple[int, ...]
    params: int
    macs: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """What a model costs, dense and pressed; ``kind`` is one of `COSTS`."""

    kind: str
    dense: float | None
    pressed: float | None


COSTS: Mapping[str, tuple[str, Callable[[float | None], str]]] = {
    "params": ("parameters", formatting.count),
    "macs": ("MACs", formatting.count),
    "bytes": ("bytes", formatting.count),
    "latency_ms": ("latency, ms", partial(formatting.fixed, digits=2)),
}
"""What costs are called, and how they are written."""


def plan_table(rows: Sequence[PlanRow]) -> Table:
    """Return one line a layer: counts have three digits and a share of the dense layer's.

    Where the terminal is narrow, names break at their dots.

    Columns that say nothing are left out: modes where no weight is reshaped, MACs where no inputs
    were given, errors where none was predicted.

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
        ("pressed\nparams", lambda row: _of(row.params, row.dense_params))
    ]
    if any(row.macs is not None for row in rows):
        counts.append(("pressed\nMACs", lambda row: _of(row.macs, row.dense_macs)))
    if any(row.error is not None for row in rows):
        counts.append(("rel.\nerror", lambda row: formatting.fixed(row.error, 3)))
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


def _of(value: int | None, dense: int | None) -> str:
    """Write a count and how much of the dense one it is."""
    if value is None or not dense:
        return formatting.MISSING
    return f"{formatting.short(value)} {f'{100 * value / dense:.0f} %':>5}"


def cost_table(costs: Sequence[Cost]) -> Table:
    """Return a line a quantity: dense, pressed, and how many times less that is.

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
    """Return one line a layer of a dense model, and as remarks why some cannot be pressed.

    Examples
    --------
    >>> from rich.console import Console
    >>> Console(width=80).print(model_table([ModelRow("fc", "Linear", (500, 800), 400_500)]))
    layer  kind    weight   params
    ──────────────────────────────
    fc     Linear  500×800    400k
    """
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    caption = "\n".join(f"{mark(notes, note)} {note}" for note in notes)
    table = plain_table(caption=Text(caption, style="dim") if notes else None)
    counted = any(row.macs is not None for row in rows)
    for heading in ("layer", "kind", "weight"):
        table.add_column(heading, overflow="fold")
    for heading in ("params", "MACs")[: 1 + counted]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Name(row.name + mark(notes, row.note)),
            Text(row.kind),
            formatting.shape(row.weight),
            formatting.short(row.params),
            *([formatting.short(row.macs)] if counted else []),
            style="dim" if row.note else "",
        )
    return table
