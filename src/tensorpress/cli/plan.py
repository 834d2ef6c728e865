"""The command plan."""

from pathlib import Path
from typing import Annotated

import typer

from tensorpress.cli.options import (
    MODEL,
    Data,
    Inputs,
    Json,
    PlanArguments,
    Preprocess,
    Root,
    WeightFile,
    add_plan_options,
)
from tensorpress.cli.output import print_json, print_line
from tensorpress.errors import InvalidArgumentError


@add_plan_options
def plan_command(
    model: Annotated[str, MODEL],
    weights: WeightFile = None,
    inputs: Inputs = None,
    *,
    arguments: PlanArguments,
    data: Data = None,
    root: Root = None,
    preprocess: Preprocess = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File for the plan, .yaml or .json, which press accepts."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what would be pressed, and what it saves; nothing is pressed.

    Weights are only loaded if ranks or the budget depend on them.

    Example: tensorpress plan --model torchvision:resnet50 --budget macs=50% --out plan.yaml
    """
    from tensorpress.cli.calibration_data import CommandData
    from tensorpress.cli.model_source import DenseByName
    from tensorpress.cli.plan_arguments import plan_from_arguments
    from tensorpress.cli.plan_output import print_plan
    from tensorpress.sensitivity.response_energy import RESPONSES

    dense = DenseByName.parse(model, weights, inputs)
    if data is not None and arguments.allocation != RESPONSES:
        raise InvalidArgumentError(f"--data only applies to a plan with --allocation {RESPONSES}")
    batches = None
    if data is not None:
        batches = CommandData.for_dense(dense, data, root, preprocess).sample()
    plan = plan_from_arguments(dense, arguments, batches)
    if out is not None:
        plan.save(out)
    if as_json:
        print_json(plan.to_dict())
        return
    print_plan(plan)
    if out is not None:
        print_line(f"plan  {out}")
