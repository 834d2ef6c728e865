"""The command inspect: the contents of a file or folder, or the layers of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

import tensorpress as tp
from tensorpress.cli.options import Inputs, Json, Model, Source
from tensorpress.cli.output import print_json, print_line, print_table
from tensorpress.errors import InvalidArgumentError
from tensorpress.report import formatting
from tensorpress.report.cost_table import ModelRow, model_table
from tensorpress.utils.formatting import format_shape

if TYPE_CHECKING:
    from torch import nn

    from tensorpress.cli.model_source import DenseByName
    from tensorpress.codec.inspect import Inspection
    from tensorpress.planning.layers import Layer


def inspect_command(
    source: Source = None,
    model: Model = None,
    inputs: Inputs = None,
    as_json: Json = False,
) -> None:
    """Show the contents of a file or folder, or which layers of a model can be pressed.

    For a .tpz file: bytes, bits per value and entropy of every tensor. For a folder: its plan. For
    --model: all layers with a weight, and why some cannot be pressed.

    Example: tensorpress inspect --model torchvision:resnet18
    """
    from tensorpress.cli.model_source import DenseByName, is_dense_checkpoint, model_place
    from tensorpress.hugging_face.pressed_config import PLAN, read_plan

    if (source is None) == (model is None):
        raise InvalidArgumentError("expected a .tpz file, a folder, or a model by --model")
    source = None if source is None else model_place(source)
    if source is not None and (not source.is_dir() or read_plan(source) is not None):
        (_print_folder if source.is_dir() else _print_file)(source, as_json)
        return
    if source is not None and not is_dense_checkpoint(source):
        raise InvalidArgumentError(
            f"{source} has neither {PLAN} nor config.json, expected the folder of a model"
        )
    _print_model(DenseByName.parse(model or str(source), None, inputs), as_json)


def _print_file(file: Path, as_json: bool) -> None:
    inspection = tp.inspect(file)
    if as_json:
        print_json(inspection.to_dict())
        return
    network, coder = inspection.network or "a custom model", inspection.coder
    data = "" if inspection.data is None else f", for {inspection.data}"
    print_line(f"{file}: {network}{data}, {coder} coder")
    if inspection.preprocess is not None:
        print_line(f"images  {inspection.preprocess}")
    print_table(_tensor_table(inspection))
    parts = ", ".join(f"{name} {size:,}" for name, size in inspection.parts.items())
    print_line(f"{inspection.size:,} bytes: {parts}")


def _print_folder(folder: Path, as_json: bool) -> None:
    from tensorpress.cli.plan_output import print_plan
    from tensorpress.hugging_face.pressed_config import read_plan

    plan = read_plan(folder)
    assert plan is not None
    files = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    if as_json:
        print_json({"folder": str(folder), "files": files, "plan": plan.to_dict()})
        return
    print_plan(plan)
    for name, size in files.items():
        print_line(f"{name}: {size:,} bytes")


def _print_model(dense: DenseByName, as_json: bool) -> None:
    from tensorpress.planning.dense_model import DenseModel
    from tensorpress.utils.module_tree import locate_weight

    model = dense.skeleton
    costs = DenseModel.from_module(model, dense.inputs(model), None)
    layers = [_describe_layer(layer) for layer in costs.layers.values()]
    layers += [
        _describe(*locate_weight(costs.module, name), name, reason)
        for name, reason in costs.unpressed.items()
    ]
    order = {id(module): place for place, module in enumerate(costs.module.modules())}
    layers.sort(key=lambda layer: order[id(locate_weight(costs.module, layer["name"])[0])])
    if as_json:
        totals = {"params": costs.params, "bytes": costs.bytes, "macs": costs.macs}
        print_json({"model": dense.name, **totals, "layers": layers})
        return
    print_table(model_table([_row(layer) for layer in layers]))
    print_line("")
    macs = "" if costs.macs is None else f", {costs.macs:,} MACs per example"
    print_line(f"{dense.name}: {costs.params:,} parameters, {costs.bytes:,} bytes{macs}")


def _describe_layer(layer: Layer) -> dict[str, Any]:
    """Describe a layer that can be pressed, with its schemes and cost."""
    from tensorpress.planning.layer_candidates import applicable_schemes
    from tensorpress.schemes.layer_plan import count_call_macs
    from tensorpress.schemes.registry import rank_schemes

    schemes, reason = applicable_schemes(layer, list(rank_schemes().values()))
    return {
        **_describe(layer.module, layer.key, layer.name, "" if schemes else reason),
        "shape": list(layer.shape),
        "params": _count_params(layer.module, layer.key),
        "macs": count_call_macs(layer.spec(), layer.calls) if schemes and layer.calls else None,
        "schemes": [scheme.name for scheme in schemes],
    }


def _describe(module: nn.Module, key: str, name: str, reason: str) -> dict[str, Any]:
    """Describe a parameter of a module; ``reason`` is why it cannot be pressed."""
    weight = module._parameters.get(key)
    return {
        "name": name,
        "kind": type(module).__name__,
        "shape": [] if weight is None else list(weight.shape),
        "params": _count_params(module, key),
        "macs": None,
        "schemes": [],
        "reason": reason,
    }


def _count_params(module: nn.Module, key: str) -> int:
    """Return the number of parameters of a module, or of one of its parameters."""
    weight = None if key == "weight" else module._parameters.get(key)
    parameters = module.parameters() if weight is None else [weight]
    return sum(parameter.numel() for parameter in parameters)


def _row(layer: dict[str, Any]) -> ModelRow:
    shape = tuple(layer["shape"])
    name = layer["name"] or "the model itself"
    return ModelRow(name, layer["kind"], shape, layer["params"], layer["macs"], layer["reason"])


def _tensor_table(inspection: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("tensor", overflow="fold")
    for heading in ("shape", "stored as"):
        table.add_column(heading, no_wrap=True)
    for heading in ("bytes", "bits", "entropy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tensor in inspection.tensors:
        table.add_row(
            tensor.short_name,
            format_shape(tensor.shape) or "scalar",
            tensor.storage,
            f"{tensor.bytes:,.1f}",
            f"{tensor.bits_per_value:.2f}",
            formatting.decimal(tensor.entropy, 2),
        )
    return table
