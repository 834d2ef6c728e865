"""Planning within a budget: what the layers may cost, and which of them are pressed for it."""

from collections.abc import Mapping, Sequence

from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.budget import Budget
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layer_plans import PlannedLayer, SchemePlan
from tensorpress.planning.layers import Layer
from tensorpress.planning.options import applicable, with_ranks
from tensorpress.planning.scores import Scores
from tensorpress.planning.spread import Spreading, Task, Ways, choices
from tensorpress.planning.within_time import within_time
from tensorpress.ranks import FractionRanks
from tensorpress.schemes.registry import scheme as scheme_named

UNITS = {"params": "parameters", "bytes": "bytes", "macs": "MACs"}


def within(
    limit: Budget,
    dense: DenseModel,
    layers: Mapping[str, Layer],
    schemes: Mapping[str, Sequence[str]],
    fixed: Mapping[str, PlannedLayer],
    rule: str | Scores,
    round_to: int,
) -> tuple[dict[str, PlannedLayer], dict[str, str]]:
    """Choose schemes and ranks so that the whole model stays within a budget.

    Parameters
    ----------
    limit : Budget
        Of the whole model.
    dense : DenseModel
        The model.
    layers : mapping of str to Layer
        Those that may be pressed.
    schemes : mapping of str to sequence of str
        What each of them may be pressed by.
    fixed : mapping of str to PlannedLayer
        Layers that are pressed in any case.
    rule : str or Scores
        How the budget is spread: see `tensorpress.plan`.
    round_to : int
        Ranks are multiples of it.

    Returns
    -------
    dict of str to PlannedLayer, dict of str to str
        The layers that are pressed, and the others with the reason.

    Raises
    ------
    InvalidArgumentError
        For a budget out of reach (with what can be reached) or one that the dense model meets; a
        budget of MACs or latency without inputs; an unknown rule.
    """
    ways: Ways = {}
    kept: dict[str, str] = {}
    for name, layer in layers.items():
        found, reason = applicable(layer, [scheme_named(s) for s in schemes[name]])
        if found:
            ways[name] = layer, found
        else:
            kept[name] = reason
    if limit.kind != "params" and limit.kind != "bytes" and not dense.inputs:
        raise InvalidArgumentError(f"a budget of {limit.kind} needs example inputs")
    spread = within_time if limit.kind == "latency" else _counted
    pressed, ruled = spread(limit, dense, ways, fixed, rule, round_to)
    kept |= {name: ruled.unpressed(name) for name in ways if name not in pressed}
    return dict(pressed), kept


def _counted(
    limit: Budget,
    dense: DenseModel,
    ways: Ways,
    fixed: Mapping[str, PlannedLayer],
    rule: str | Scores,
    round_to: int,
) -> Spreading:
    """Spread a budget of what is known exactly."""
    total = {"params": dense.params, "bytes": dense.bytes, "macs": dense.macs}[limit.kind]
    assert total is not None
    amount = limit.of(total)
    if amount >= total:
        raise InvalidArgumentError(
            f"the budget {limit} is no saving: the dense model has {total:,} {UNITS[limit.kind]}"
        )

    def cost(layer: PlannedLayer) -> float:
        if limit.kind == "macs":
            return layer.macs if isinstance(layer, SchemePlan) else 0
        return layer.factor_params * (layer.itemsize if limit.kind == "bytes" else 1)

    def dense_cost(layer: PlannedLayer) -> float:
        if limit.kind == "macs":
            return layer.dense_macs if isinstance(layer, SchemePlan) else 0
        return layer.dense_params * (layer.itemsize if limit.kind == "bytes" else 1)

    smallest = {
        name: with_ranks(layer, schemes[0], FractionRanks(1e-9))
        for name, (layer, schemes) in ways.items()
    }
    task = Task(ways, cost, {name: dense_cost(x) for name, x in smallest.items()}, round_to)
    found = choices(task, rule)
    others = total - sum(task.dense.values()) - sum(dense_cost(x) - cost(x) for x in fixed.values())
    if others + found.least > amount:
        raise InvalidArgumentError(
            f"the budget {limit} is out of reach: with all that may be pressed at the smallest "
            f"ranks the model has {others + found.least:,.0f} of {total:,} {UNITS[limit.kind]}"
        )
    return found.within(amount - others), found
