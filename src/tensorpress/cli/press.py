"""The command press."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import tensorpress as tp
from tensorpress.cli.options import (
    Cluster,
    Data,
    Inputs,
    Json,
    Model,
    PlanArguments,
    Preprocess,
    Processes,
    Root,
    WeightFile,
    add_plan_options,
)
from tensorpress.cli.output import print_json, print_line, print_table
from tensorpress.errors import InvalidArgumentError
from tensorpress.report import formatting
from tensorpress.report.cost_table import Cost, cost_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from tensorpress.cli.model_source import DenseByName

Reconstruct = Literal["norms", "refit", "inputs", "linear", "nonlinear"]
"""The choices in `tensorpress.reconstruct.layerwise`, which the help need not import."""


@add_plan_options
def press_command(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="Checkpoint folder in Hugging Face's layout, to be pressed without loading it: "
            "tensor by tensor, or block by block with --data."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the pressed model.")],
    model: Model = None,
    weights: WeightFile = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", "-p", help="A file written by plan, instead of options for a plan."),
    ] = None,
    inputs: Inputs = None,
    arguments: PlanArguments,
    processes: Processes = 1,
    cluster: Cluster = None,
    data: Data = None,
    reconstruct: Annotated[
        Reconstruct | None,
        typer.Option(help="What to fit with --data; by default linear."),
    ] = None,
    root: Root = None,
    preprocess: Preprocess = None,
    as_json: Json = False,
) -> None:
    """Press a model by a plan, and write it as a folder of safetensors.

    Example: tensorpress press --model torchvision:resnet50 --weights r50.safetensors
    --plan plan.yaml --out pressed
    """
    from tensorpress.cli.calibration_data import CommandData
    from tensorpress.cli.model_source import DenseByName
    from tensorpress.cli.plan_arguments import plan_from_arguments
    from tensorpress.reconstruct.layerwise import check_reconstruction
    from tensorpress.utils.executors import connect_cluster

    parallel = processes > 1 or cluster is not None
    check_reconstruction(reconstruct, data is not None, "decompose", parallel)
    if plan is not None and arguments != PlanArguments():
        raise InvalidArgumentError(
            f"{plan} is a plan: remove the options from which a plan is made"
        )
    stored_plan = None if plan is None else tp.Plan.read(plan)
    if checkpoint is not None:
        _check_checkpoint_options(checkpoint, weights, reconstruct)
        dense = DenseByName.parse(model or str(checkpoint), None, inputs)
        with connect_cluster(cluster) as executor:
            options: dict[str, Any] = {"processes": processes, "executor": executor}
            result = _press_folder(
                checkpoint, dense, stored_plan or arguments, out, options, data, root
            )
    else:
        check_new(out)
        if model is None:
            raise InvalidArgumentError("expected a model by --model, or the folder of a checkpoint")
        dense = DenseByName.parse(model, weights, inputs)
        batches = None
        if data is not None:
            batches = CommandData.for_dense(dense, data, root, preprocess).sample()
        model_plan = stored_plan or plan_from_arguments(dense, arguments, batches)
        with connect_cluster(cluster) as executor:
            options = {"processes": processes, "executor": executor}
            if batches is not None:
                options = {"calibration": batches, "reconstruct": reconstruct}
            result = model_plan, _press_model(dense, model_plan, out, options)
        dense.origin(data, preprocess).write(out)
    _print_result(*result, out, as_json)


def _press_model(
    dense: DenseByName, plan: tp.Plan, out: Path, options: dict[str, Any]
) -> list[Cost]:
    """Press a model into a folder, and return its costs."""
    model = dense.model
    pressed = tp.press(model, plan, example_inputs=dense.inputs(model), **options)
    tp.save_checkpoint(pressed, out, plan)
    return _measure_costs(model, pressed, dense.inputs(model))


def _measure_costs(
    dense: nn.Module, pressed: nn.Module, inputs: Sequence[Tensor] | None
) -> list[Cost]:
    from tensorpress.measure import count_bytes, count_macs, count_params, measure_latencies

    models = (dense, pressed)
    costs = [Cost("params", *map(count_params, models)), Cost("bytes", *map(count_bytes, models))]
    if inputs is not None:
        costs.insert(1, Cost("macs", *(count_macs(model, inputs) for model in models)))
        costs.append(Cost("latency_ms", *measure_latencies(models, inputs)))
    return costs


def _check_checkpoint_options(
    checkpoint: Path, weights: Path | None, reconstruct: str | None
) -> None:
    if reconstruct not in (None, "linear"):
        raise InvalidArgumentError(
            f"--reconstruct {reconstruct} needs the whole model, but checkpoint folders are fitted "
            f"block by block: use --model hf:{checkpoint}"
        )
    if weights is not None:
        raise InvalidArgumentError(f"{checkpoint} already has weights: remove --weights")


def _press_folder(
    checkpoint: Path,
    dense: DenseByName,
    plan: tp.Plan | PlanArguments,
    out: Path,
    options: dict[str, Any],
    data: str | None,
    root: Path | None,
) -> tuple[tp.Plan, list[Cost]]:
    """Press a folder, without measurements that need all weights at once."""
    from tensorpress.cli.calibration_data import STREAM_SAMPLE, CommandData
    from tensorpress.cli.model_source import LoadedModel
    from tensorpress.cli.plan_arguments import parse_plan_options
    from tensorpress.cli.plan_output import plan_costs

    model = tp.load_model(dense.name, meta=True)
    if not dense.name.startswith("hf:"):
        options["model"] = model
    if isinstance(plan, PlanArguments):
        options |= {"example_inputs": dense.inputs(model), **parse_plan_options(plan)}
    else:
        options["plan"] = plan
    if data is not None:
        loaded = LoadedModel(str(checkpoint), model, f"hf:{checkpoint}")
        batches = CommandData.open(loaded, data, root, None).sample(STREAM_SAMPLE)
        options["calibration"] = batches
    try:
        result = tp.press_checkpoint(checkpoint, out, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{out} has the results so far: repeat the command to continue"
        ) from None
    dense.origin(data, None).write(out)
    return result, plan_costs(result)


def _print_result(plan: tp.Plan, costs: list[Cost], out: Path, as_json: bool) -> None:
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    if as_json:
        dense = {cost.kind: cost.dense for cost in costs}
        pressed = {cost.kind: cost.pressed for cost in costs}
        sizes = {"file_bytes": size, "dense": dense, "pressed": pressed}
        print_json({"out": str(out), "plan": plan.id, **sizes})
        return
    schemes = ", ".join(dict.fromkeys(layer.scheme for layer in plan.layers))
    total = len(plan.layers) + len(plan.unpressed_weights)
    print_line(f"pressed {len(plan.layers)} of {total} layers, by {schemes}")
    print_line("")
    print_table(cost_table(costs))
    print_line("")
    print_line(f"written  {out}, {' '.join(formatting.size(size))}")


def check_new(folder: Path) -> None:
    """Raise an error, before the work begins, if a folder cannot be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgumentError(f"{folder} already exists: choose a new or empty folder")
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InvalidArgumentError(
            f"{folder} cannot be written: {nearest} is not a writable folder"
        )
