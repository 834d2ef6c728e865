"""The command press."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.checkpoints import press_checkpoint, save_checkpoint
from tensorpress.cli.calibration_data import calibration_images
from tensorpress.cli.model_source import DenseByName, write_origin
from tensorpress.cli.options import (
    AllocationText,
    BudgetText,
    Calibrate,
    Cluster,
    Inputs,
    Json,
    Model,
    Overrides,
    PlanArguments,
    Processes,
    RankText,
    Root,
    RoundTo,
    SchemeNames,
    Skip,
    Targets,
    WeightFile,
)
from tensorpress.cli.output import print_json, print_line, print_table
from tensorpress.cli.plan import plan_costs, plan_from_arguments
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure import count_macs, count_params, measure_latencies
from tensorpress.models import load_model
from tensorpress.planning.plan import Plan
from tensorpress.planning.planner import PlanOptions
from tensorpress.reconstruct.layerwise import Reconstruct, check_reconstruction
from tensorpress.report import formatting
from tensorpress.report.cost_table import Cost, cost_table
from tensorpress.utils.executors import connect_cluster

PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", "-p", help="A file that plan wrote, in place of options for a plan."),
]


def press_command(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of a checkpoint in Hugging Face's layout, pressed tensor by tensor "
            "without being loaded."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the pressed model.")],
    model: Model = None,
    weights: WeightFile = None,
    plan: PlanFile = None,
    inputs: Inputs = None,
    scheme: SchemeNames = "auto",
    ranks: RankText = None,
    allocation: AllocationText = None,
    budget: BudgetText = None,
    targets: Targets = None,
    skip: Skip = None,
    override: Overrides = None,
    round_to: RoundTo = 1,
    processes: Processes = 1,
    cluster: Cluster = None,
    calibrate: Calibrate = None,
    reconstruct: Annotated[
        Reconstruct | None,
        typer.Option(help="What is fitted with --calibrate; linear if not given."),
    ] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Press a model by a plan, and write it as a folder of safetensors.

    Example: tensorpress press --model torchvision:resnet50 --weights r50.safetensors
    --plan plan.yaml --out pressed
    """
    parallel = processes > 1 or cluster is not None
    check_reconstruction(reconstruct, calibrate is not None, "decompose", parallel)
    arguments = PlanArguments(scheme, ranks, allocation, budget, targets, skip, override, round_to)
    if plan is not None and not arguments.is_default:
        raise InvalidArgumentError(f"{plan} is a plan already: leave out what one is made from")
    read = None if plan is None else Plan.read(plan)
    if checkpoint is None:
        _check_new(out)
        if model is None:
            raise InvalidArgumentError("give a model by --model, or the folder of a checkpoint")
        dense = DenseByName.parse(model, weights, inputs)
        images = None if calibrate is None else calibration_images(dense, calibrate, root)
        made = read or plan_from_arguments(dense, arguments, images)
        with connect_cluster(cluster) as executor:
            how: dict[str, Any] = {"processes": processes, "executor": executor}
            if images is not None:
                how = {"calibration": images, "reconstruct": reconstruct}
            result = _press_model(dense, made, out, how)
    else:
        if calibrate is not None:
            raise InvalidArgumentError(
                "a checkpoint is pressed tensor by tensor, and --calibrate needs to run the model: "
                f"give --model hf:{checkpoint}"
            )
        dense = _parse_dense(checkpoint, model, weights, inputs)
        options = read or arguments.options()
        with connect_cluster(cluster) as executor:
            how = {"processes": processes, "executor": executor}
            result = _press_folder(checkpoint, dense, options, out, how)
    _show(result, out, as_json)


@dataclass(frozen=True)
class _Pressed:
    plan: Plan
    costs: list[Cost]


def _press_model(dense: DenseByName, plan: Plan, out: Path, how: dict[str, Any]) -> _Pressed:
    model = dense.model
    pressed = tp.press(model, plan, example_inputs=dense.inputs(model), **how)
    save_checkpoint(pressed, out, plan)
    write_origin(out, dense.name)
    return _Pressed(plan, _measure_costs(model, pressed, dense.inputs(model)))


def _measure_costs(
    dense: nn.Module, pressed: nn.Module, inputs: Sequence[Tensor] | None
) -> list[Cost]:
    models = (dense, pressed)
    costs = [
        Cost("params", *map(count_params, models)),
        Cost("bytes", *map(_bytes, models)),
    ]
    if inputs is not None:
        costs.insert(1, Cost("macs", *(count_macs(model, inputs) for model in models)))
        costs.append(Cost("latency_ms", *measure_latencies(models, inputs)))
    return costs


def _bytes(model: nn.Module) -> int:
    held = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _parse_dense(
    checkpoint: Path, model: str | None, weights: Path | None, inputs: list[str] | None
) -> DenseByName:
    if weights is not None:
        raise InvalidArgumentError(f"{checkpoint} has weights of its own: leave out --weights")
    return DenseByName.parse(model or str(checkpoint), None, inputs)


def _press_folder(
    checkpoint: Path,
    dense: DenseByName,
    plan: Plan | PlanOptions,
    out: Path,
    how: dict[str, Any],
) -> _Pressed:
    """Press tensor by tensor; what depends on all weights at once is not measured."""
    model = load_model(dense.name, meta=True)
    named = None if dense.name.startswith("hf:") else model
    if isinstance(plan, Plan):
        done = press_checkpoint(checkpoint, out, plan, model=named, **how)
    else:
        how |= {"example_inputs": dense.inputs(model), **plan}
        done = press_checkpoint(checkpoint, out, model=named, **how)
    write_origin(out, dense.name)
    return _Pressed(done, plan_costs(done))


def _show(found: _Pressed, out: Path, as_json: bool) -> None:
    plan = found.plan
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    if as_json:
        dense = {cost.kind: cost.dense for cost in found.costs}
        pressed = {cost.kind: cost.pressed for cost in found.costs}
        told = {"out": str(out), "plan": plan.id, "file_bytes": size}
        print_json({**told, "dense": dense, "pressed": pressed})
        return
    schemes = ", ".join(dict.fromkeys(layer.scheme for layer in plan.layers))
    total = len(plan.layers) + len(plan.unpressed)
    print_line(f"pressed {len(plan.layers)} of {total} layers, by {schemes}")
    print_line("")
    print_table(cost_table(found.costs))
    print_line("")
    print_line(f"written  {out}, {' '.join(formatting.size(size))}")


def _check_new(folder: Path) -> None:
    """Raise before the work is done, not after, if a folder cannot be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgumentError(f"{folder} is there already: give a new or an empty folder")
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InvalidArgumentError(
            f"{folder} cannot be written: {nearest} is no folder to write in"
        )
