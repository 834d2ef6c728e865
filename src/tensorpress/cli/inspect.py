"""The command inspect: what is in a file or a folder, or which layers of a model can be pressed."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tensorpress.checkpoints.load import PLAN
from tensorpress.cli.model_source import DenseByName, is_dense_checkpoint
from tensorpress.cli.options import Inputs, Json, Model
from tensorpress.cli.output import print_json, print_line, print_table
from tensorpress.cli.plan import show_plan
from tensorpress.codec.inspect import Inspection, inspect
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layer_candidates import applicable_schemes
from tensorpress.planning.layers import Layer
from tensorpress.planning.plan import Plan
from tensorpress.report import formatting
from tensorpress.report.cost_table import ModelRow, model_table
from tensorpress.schemes.layer_plan import count_call_macs
from tensorpress.schemes.registry import rank_schemes
from tensorpress.utils.formatting import format_shape


def inspect_command(
    source: Annotated[
        Path | None, typer.Argument(help="A .tpz file, or a folder that press wrote.")
    ] = None,
    model: Model = None,
    inputs: Inputs = None,
    as_json: Json = False,
) -> None:
    """Show what is in a file or a folder, or which layers of a model can be pressed.

    Of a .tpz file the bytes of every tensor, its bits and its entropy a value; of a folder its
    plan; of a model by --model the layers with a weight, and why some cannot be pressed.

    Example: tensorpress inspect --model torchvision:resnet18
    """
    if (source is None) == (model is None):
        raise InvalidArgumentError("give either a .tpz file or a folder, or a model by --model")
    if source is not None and (not source.is_dir() or (source / PLAN).is_file()):
        (_show_folder if source.is_dir() else _show_file)(source, as_json)
        return
    if source is not None and not is_dense_checkpoint(source):
        raise InvalidArgumentError(f"{source} has neither {PLAN} nor config.json: it is no model")
    _show_model(DenseByName.parse(model or str(source), None, inputs), as_json)


def _show_file(file: Path, as_json: bool) -> None:
    found = inspect(file)
    if as_json:
        print_json(found.to_dict())
        return
    print_line(f"{file}: {found.network or 'a model of your own'}, {found.coder} coder")
    print_table(_tensor_table(found))
    parts = ", ".join(f"{name} {size:,}" for name, size in found.parts.items())
    print_line(f"{found.size:,} bytes: {parts}")


def _show_folder(folder: Path, as_json: bool) -> None:
    plan = Plan.read(folder / PLAN)
    files = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    if as_json:
        print_json({"folder": str(folder), "files": files, "plan": plan.to_dict()})
        return
    show_plan(plan)
    for name, size in files.items():
        print_line(f"{name}: {size:,} bytes")


def _show_model(dense: DenseByName, as_json: bool) -> None:
    model = dense.skeleton
    found = DenseModel.from_module(model, dense.inputs(model), None)
    layers = [_layer(found.layers[name]) for name in found.layers] + [
        _kept(found, name, reason) for name, reason in found.unpressed.items()
    ]
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    layers.sort(key=lambda layer: order[layer["name"]])
    if as_json:
        totals = {"params": found.params, "bytes": found.bytes, "macs": found.macs}
        print_json({"model": dense.name, **totals, "layers": layers})
        return
    print_table(model_table([_row(layer) for layer in layers]))
    print_line("")
    macs = "" if found.macs is None else f", {found.macs:,} MACs an example"
    print_line(f"{dense.name}: {found.params:,} parameters, {found.bytes:,} bytes{macs}")


def _layer(layer: Layer) -> dict[str, Any]:
    """Return what there is to know about a layer."""
    schemes, reason = applicable_schemes(layer, list(rank_schemes().values()))
    macs = count_call_macs(layer.spec(), layer.calls) if schemes and layer.calls else None
    return {
        "name": layer.name,
        "kind": type(layer.module).__name__,
        "shape": list(layer.shape),
        "params": sum(parameter.numel() for parameter in layer.module.parameters()),
        "macs": macs,
        "schemes": [scheme.name for scheme in schemes],
        "reason": "" if schemes else reason,
    }


def _kept(found: DenseModel, name: str, reason: str) -> dict[str, Any]:
    module = found.module.get_submodule(name)
    weight = module._parameters.get("weight")
    return {
        "name": name,
        "kind": type(module).__name__,
        "shape": [] if weight is None else list(weight.shape),
        "params": sum(parameter.numel() for parameter in module.parameters()),
        "macs": None,
        "schemes": [],
        "reason": reason,
    }


def _row(layer: dict[str, Any]) -> ModelRow:
    shape = tuple(layer["shape"])
    name = layer["name"] or "the model itself"
    return ModelRow(name, layer["kind"], shape, layer["params"], layer["macs"], layer["reason"])


def _tensor_table(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("tensor", overflow="fold")
    for heading in ("shape", "stored as"):
        table.add_column(heading, no_wrap=True)
    for heading in ("bytes", "bits", "entropy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tensor in found.tensors:
        table.add_row(
            tensor.short_name,
            format_shape(tensor.shape) or "scalar",
            tensor.storage,
            f"{tensor.bytes:,.1f}",
            f"{tensor.bits_per_value:.2f}",
            formatting.decimal(tensor.entropy, 2),
        )
    return table
