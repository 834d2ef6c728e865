"""Printing of plans."""

from dataclasses import replace

from tensorpress.cli.output import print_line, print_table
from tensorpress.planning.plan import Plan
from tensorpress.planning.plan_table import format_unpressed
from tensorpress.report.cost_table import Cost, PlanRow, cost_table, plan_table
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.utils.formatting import format_shape


def print_plan(plan: Plan) -> None:
    """Print the layers of a plan, their costs, and the layers that stay dense."""
    print_table(plan_table([_row(layer) for layer in plan.layers]))
    if plan.shared_core:
        print_line(f"and a core {format_shape(plan.shared_core)} that layers share")
    print_line("")
    print_table(cost_table(plan_costs(plan)))
    if plan.latency is not None:
        print_line(plan.latency.text)
    print_line("")
    for line in format_unpressed(plan.unpressed_weights):
        print_line(line)


def plan_costs(plan: Plan) -> list[Cost]:
    """Return the costs of the whole model, dense and pressed."""
    costs = [
        Cost("params", plan.dense_params, plan.params),
        Cost("bytes", plan.dense_bytes, plan.bytes),
    ]
    if plan.macs is not None:
        costs.insert(1, Cost("macs", plan.dense_macs, plan.macs))
    if plan.latency is not None:
        costs.append(Cost("latency_ms", plan.latency.dense, plan.latency.reached))
    return costs


def _row(layer: LayerPlan) -> PlanRow:
    row = PlanRow(
        layer.name or "the model itself",
        layer.scheme,
        layer.shape,
        layer.modes,
        layer.ranks,
        layer.dense_params,
        layer.factor_params,
    )
    if layer.calls:
        row = replace(row, dense_macs=layer.dense_macs, macs=layer.macs)
    return replace(row, error=layer.error)
