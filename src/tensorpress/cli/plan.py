"""The command plan."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import tensorpress as tp
from tensorpress.calibrate.batches import CalibrationBatch
from tensorpress.cli.calibration_data import calibration_images
from tensorpress.cli.model_source import DenseByName
from tensorpress.cli.options import (
    MODEL,
    AllocationText,
    BudgetText,
    Calibrate,
    Inputs,
    Json,
    Overrides,
    PlanArguments,
    RankText,
    Root,
    RoundTo,
    SchemeNames,
    Skip,
    Targets,
    WeightFile,
)
from tensorpress.cli.output import print_json, print_line, print_table
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.budget import parse_budget
from tensorpress.planning.plan import Plan
from tensorpress.planning.plan_table import format_unpressed
from tensorpress.report.cost_table import Cost, PlanRow, cost_table, plan_table
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.sensitivity.response_energy import RESPONSES, response_energies
from tensorpress.utils.formatting import format_shape


def plan_command(
    model: Annotated[str, MODEL],
    weights: WeightFile = None,
    inputs: Inputs = None,
    scheme: SchemeNames = "auto",
    ranks: RankText = None,
    allocation: AllocationText = None,
    budget: BudgetText = None,
    targets: Targets = None,
    skip: Skip = None,
    override: Overrides = None,
    round_to: RoundTo = 1,
    calibrate: Calibrate = None,
    root: Root = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File for the plan, .yaml or .json; press takes it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what would be pressed, and what that saves; nothing is pressed.

    Weights are only loaded where ranks or the budget depend on them.

    Example: tensorpress plan --model torchvision:resnet50 --budget macs=50% --out plan.yaml
    """
    arguments = PlanArguments(scheme, ranks, allocation, budget, targets, skip, override, round_to)
    dense = DenseByName.parse(model, weights, inputs)
    if calibrate is not None and allocation != RESPONSES:
        raise InvalidArgumentError(f"a plan needs --calibrate for --allocation {RESPONSES} only")
    images = None if calibrate is None else calibration_images(dense, calibrate, root)
    plan = plan_from_arguments(dense, arguments, images)
    if out is not None:
        plan.save(out)
    if as_json:
        print_json(plan.to_dict())
        return
    show_plan(plan)
    if out is not None:
        print_line(f"plan  {out}")


def plan_from_arguments(
    dense: DenseByName, arguments: PlanArguments, images: Iterable[CalibrationBatch] | None = None
) -> Plan:
    """Plan a model, which is loaded only if something depends on its values.

    Raises
    ------
    InvalidArgumentError
        If the budget is to be spread by responses and there are no images.
    """
    if arguments.allocation == RESPONSES:
        if images is None:
            raise InvalidArgumentError(f"--allocation {RESPONSES} needs --calibrate, a data set")
        model = dense.model
        options = replace(arguments, allocation=None).options()
        options["allocation"] = response_energies(
            model,
            images,
            scheme=arguments.scheme,
            targets=options["targets"],
            skip=options["skip"],
        )
        return tp.plan(model, dense.inputs(model), **options)
    timed = arguments.budget is not None and parse_budget(arguments.budget).kind == "latency"
    model = dense.model if timed else dense.skeleton
    return tp.plan(model, dense.inputs(model), **arguments.options(), weights=dense.weight)


def show_plan(plan: Plan) -> None:
    """Print the layers of a plan, what they save together, and what is kept and why."""
    print_table(plan_table([_row(layer) for layer in plan.layers]))
    if plan.shared_core:
        print_line(f"and a core {format_shape(plan.shared_core)} that layers share")
    print_line("")
    print_table(cost_table(plan_costs(plan)))
    print_line("")
    for line in format_unpressed(plan.unpressed):
        print_line(line)


def plan_costs(plan: Plan) -> list[Cost]:
    """Return what the whole model costs by its plan."""
    found = [
        Cost("params", plan.dense_params, plan.params),
        Cost("bytes", plan.dense_bytes, plan.bytes),
    ]
    if plan.macs is not None:
        found.insert(1, Cost("macs", plan.dense_macs, plan.macs))
    return found


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
