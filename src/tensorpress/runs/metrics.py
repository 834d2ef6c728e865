"""The measurements of a run: `metrics.json` and the content of the report."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tensorpress
from tensorpress.codec.inspect import Inspection, StoredLayer
from tensorpress.codec.model_tensors import quantized_names, stored_tensors
from tensorpress.measure import count_macs, measure_latencies
from tensorpress.planning import LayerPlan, Plan
from tensorpress.press.press import materialize
from tensorpress.report import Curve, Curves, FilePart, Histogram, LayerRow, ReportContent
from tensorpress.runs.recipe import Recipe
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.schemes.registry import scheme
from tensorpress.train import History
from tensorpress.utils.module_tree import locate_weight, parameter_name, weight_name

BINS = 61


@dataclass(frozen=True)
class RunRecord:
    """The results of a run, from which its metrics and report are made.

    ``initial`` is the pressed model before training, if it was decomposed from trained weights.
    ``latent`` has the weights before quantization, ``decoded`` those of the file. ``errors`` in
    percent are "dense", "start" (of ``initial``), "pressed" and "file", on the images that
    ``errors_on`` names ("test" or "validation"), and "validation", that of the file on the
    validation images.
    """

    recipe: Recipe
    seed: int
    plan: Plan
    dense: nn.Module
    initial: nn.Module | None
    latent: nn.Module
    decoded: nn.Module
    inspection: Inspection
    histories: Mapping[str, History]
    errors: Mapping[str, float | None]
    errors_on: str
    seconds: float
    example: Tensor


def run_metrics(record: RunRecord) -> dict[str, Any]:
    """Return the content of ``metrics.json``: plain numbers, errors in percent, times in ms.

    ``ratio.params`` is dense over stored parameters; ``ratio.file`` is 4 bytes per dense parameter
    over the size of the file. ``latency.pressed_ms`` is the time of the pressed network, and
    ``materialized_ms`` its time after dense weights have been rebuilt once; both need the MACs of
    ``pressed``. ``pressed.start_error`` is the error before training.
    """
    dense_params, params = record.plan.dense_params, record.plan.params
    size = record.inspection.size
    ready = materialize(record.decoded)
    macs = [count_macs(model, [record.example]) for model in (record.dense, ready)]
    times = measure_latencies([record.dense, ready, record.decoded], [record.example])
    names = ("dense_ms", "materialized_ms", "pressed_ms")
    return {
        "dense": {
            "params": dense_params,
            "bytes": 4 * dense_params,
            "macs": macs[0],
            "error": record.errors["dense"],
        },
        "pressed": {
            "params": params,
            "macs": macs[1],
            "start_error": record.errors["start"],
            "error": record.errors["pressed"],
        },
        "file": {
            "bytes": size,
            "error": record.errors["file"],
            "validation_error": record.errors["validation"],
        },
        "errors_on": record.errors_on,
        "ratio": {
            "params": dense_params / params,
            "macs": macs[0] / macs[1],
            "file": 4 * dense_params / size,
        },
        "latency": {"batch": len(record.example), **dict(zip(names, times, strict=True))},
        "seconds": record.seconds,
        "recipe": record.recipe.model_dump(mode="json", exclude_defaults=True),
        "seed": record.seed,
        "versions": {
            "tensorpress": tensorpress.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": _device(record.example.device),
    }


def report_content(record: RunRecord, metrics: dict[str, Any]) -> ReportContent:
    """Return the content of the report page."""
    recipe = record.recipe
    scheme = recipe.press.scheme if recipe.press else "dense"
    return ReportContent(
        title=recipe.title,
        subtitle=f"{recipe.network} on {recipe.data.origin}, {scheme}, seed {record.seed}",
        metrics=metrics,
        layers=layer_rows(record),
        histograms=_histograms(record),
        curves=_curves(record.histories),
        file_parts=file_parts(record.inspection),
        recipe_yaml=recipe.to_yaml(),
    )


def layer_rows(record: RunRecord) -> list[LayerRow]:
    """Return a row for every weight of at least two axes, pressed or dense."""
    stored = {tensor.name: tensor.bytes for tensor in record.inspection.tensors}
    rows = []
    planned = {layer.name: layer for layer in record.plan.layers}
    for name, module, weight in _weights(record.dense):
        layer = planned.get(name)
        params = layer.factor_params if layer else weight.numel()
        dense_name = parameter_name(record.dense, name)
        size = sum(
            bytes_
            for key, bytes_ in stored.items()
            if (_is_weight_of(key, layer) if layer else key == dense_name)
        )
        rows.append(
            LayerRow(
                name=name,
                kind=type(module).__name__,
                scheme=layer.scheme if layer else "dense",
                dense_shape=tuple(weight.shape),
                modes=layer.modes if layer else (),
                ranks=layer.ranks if layer else (),
                dense_params=weight.numel(),
                pressed_params=params,
                file_bytes=size,
                bits_per_weight=8 * size / params,
                error=_start_error(record, name) if layer else None,
                note="" if layer else record.plan.unpressed.get(name, ""),
            )
        )
    return rows


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield the name, module and weight of each layer, and tied weights only once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for key, weight in module._parameters.items():
            if weight is not None and weight.ndim >= 2 and id(weight) not in seen:
                seen.add(id(weight))
                yield weight_name(path, key), module, weight


def _is_weight_of(key: str, layer: LayerPlan) -> bool:
    """Return whether a stored tensor is a factor of a layer's weight and not a shared core."""
    shared = layer.method.shared and key.endswith("original0")
    return _is_part_of(key, layer.name) and not key.endswith(".bias") and not shared


def _is_part_of(key: str, layer: str) -> bool:
    """Return whether a tensor belongs to a layer, named by its module or its parameter."""
    parent, _, last = layer.rpartition(".")
    rebuilt = f"{parent}.parametrizations.{last}.".removeprefix(".")
    return key.startswith((f"{layer}.", rebuilt))


def file_parts(inspection: Inspection) -> list[FilePart]:
    """Return the parts of a file by layer and kind; together they are the whole file."""
    groups: dict[str, float] = {
        "container, checksum": inspection.parts["container"],
        "header: network and plan": inspection.parts["header"],
    }
    for tensor in inspection.tensors:
        part = _name_part(tensor.name, inspection.layers)
        groups[part] = groups.get(part, 0.0) + tensor.bytes
    groups["quantizers, padding"] = inspection.size - sum(groups.values())
    return [FilePart(name, size) for name, size in groups.items()]


def _name_part(name: str, layers: Sequence[StoredLayer]) -> str:
    if name.endswith(".bias"):
        return "biases"
    layer = next((layer for layer in layers if _is_part_of(name, layer.name)), None)
    if layer is not None:
        shared = scheme(layer.scheme).shared and name.endswith("original0")
        return "shared core" if shared else f"{layer.name}: factors"
    return f"{name.removesuffix('.weight')}: weight" if name.endswith(".weight") else "buffers"


def _start_error(record: RunRecord, name: str) -> float | None:
    """Return the relative error of a layer's weight right after decomposition."""
    if record.initial is None:
        return None
    module, key = locate_weight(record.initial, name)
    if isinstance(module, Pressed):
        return module.relative_error
    pressed: Tensor = getattr(module, key)
    dense = record.dense.get_parameter(parameter_name(record.dense, name))
    with torch.no_grad():
        norm = float(dense.norm())
        return float((dense - pressed).norm()) / norm if norm else 0.0


def _histograms(record: RunRecord) -> list[Histogram]:
    """Return histograms of every layer's stored values, before and after quantization."""
    before, after = stored_tensors(record.latent), stored_tensors(record.decoded)
    groups: dict[str, list[str]] = {}
    for name in quantized_names(record.decoded):
        module = name.removesuffix(".bias").removesuffix(".weight")
        layer = next((p.name for p in record.plan.layers if _is_part_of(name, p.name)), module)
        groups.setdefault(layer, []).append(name)
    histograms = []
    for layer, names in groups.items():
        latent, decoded = (
            torch.cat([tensors[name].detach().flatten() for name in names]).cpu()
            for tensors in (before, after)
        )
        bound = max(float(latent.abs().max()), float(decoded.abs().max())) or 1.0
        edges = torch.linspace(-bound, bound, BINS + 1)
        counts = [torch.histogram(v, edges).hist.int().tolist() for v in (latent, decoded)]
        histograms.append(Histogram(layer, edges.tolist(), *counts))
    return histograms


def _curves(histories: Mapping[str, History]) -> list[Curves]:
    """Return curves for each phase; after the dense phase, epochs are numbered consecutively."""
    offsets, done = {}, 0
    for phase, history in histories.items():
        offsets[phase] = done
        done += 0 if phase == "dense" else len(history.epochs)

    def curves(key: str) -> list[Curve]:
        return [
            Curve(
                phase,
                [offsets[phase] + epoch.epoch for epoch in history.epochs],
                [getattr(epoch, key) for epoch in history.epochs],
            )
            for phase, history in histories.items()
        ]

    return [
        Curves("Training loss", "", curves("train_loss")),
        Curves("Validation error", "%", curves("validation_error")),
    ]


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
