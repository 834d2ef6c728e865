"""The report of a pressed model: layers, costs, times and fidelity, compared to the dense model."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from platform import machine, python_version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import CalibrationBatch, collect_batches
from tensorpress.compress.reference import Reference
from tensorpress.compress.result import finite
from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.measure.latency import time_layers, time_passes
from tensorpress.measure.model_inputs import ExampleInputs
from tensorpress.planning.budget_rules import NO_RANKS
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layer_candidates import (
    applicable_schemes,
    plan_with_ranks,
    refuse_no_gain,
)
from tensorpress.planning.layers import Layer
from tensorpress.planning.plan import Plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.planning.planner import AUTO
from tensorpress.press.unpress import dense_weight
from tensorpress.ranks import FractionRanks
from tensorpress.report.model_page import write_model_page
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.registry import scheme as scheme_named
from tensorpress.utils.atomic_files import check_writable
from tensorpress.utils.module_tree import locate_weight, unwrap

_MAX_POINTS = 40
"""Points of a curve of error over rank."""


def report(
    dense: nn.Module,
    pressed: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    batches: Iterable[CalibrationBatch] | None = None,
    example_inputs: ExampleInputs | None = None,
    title: str | None = None,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Compare a pressed model with the dense model, and write a page about it.

    Parameters
    ----------
    dense, pressed : nn.Module
        The models. The pressed one may come from `press`, `compress`, `load` or `load_checkpoint`.
    path : path-like, optional
        HTML file to write; it needs no network and no scripts.
    batches : iterable, optional
        Inputs, or pairs of inputs and labels, that nothing was fitted to. Outputs are compared with
        the dense model's on them.
    example_inputs : Tensor, sequence or mapping, optional
        Arguments of a forward pass, for multiply–accumulates and times; by default the first batch.
    title : str, optional
        Title of the page, by default the class of the model.
    plan : Plan, optional
        The plan of the pressed model; the page repeats its reasons for layers that stay dense.

    Returns
    -------
    dict
        The numbers of the page as plain data for JSON.

    Raises
    ------
    InvalidArgumentError
        If the inputs do not fit, a weight has no finite values, or the file cannot be written.
    ModelMismatchError
        If a pressed layer has no counterpart of its shape in the dense model.

    Examples
    --------
    >>> import tensorpress as tp
    >>> net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    >>> pressed = tp.press(net, tp.plan(net, scheme="channel_svd", ranks=4))
    >>> content = report(net, pressed, batches=[torch.randn(64, 30)])
    >>> content["costs"]["params"]
    {'dense': 830, 'compressed': 350}
    >>> [(layer["name"], layer["ranks"]) for layer in content["layers"]]
    [('0', [4]), ('2', [4])]
    """
    dense, pressed = unwrap(dense), unwrap(pressed)
    if path is not None:
        check_writable(path)
    data = None if batches is None else collect_batches(batches, dense)
    if example_inputs is None and data:
        example_inputs = data[0].arguments
    content = {
        "title": title or type(dense).__name__,
        **describe(dense, pressed, example_inputs, plan),
        "fidelity": None,
        "verdict": "outputs were not compared: no data were given",
    }
    if data is not None:
        result = Reference(dense, data).compare(pressed)
        content |= {"fidelity": result.to_dict(), "verdict": result.verdict}
    if path is not None:
        write_model_page(content, path)
    return content


def describe(
    dense: nn.Module,
    pressed: nn.Module,
    example_inputs: ExampleInputs | None = None,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Return layers and costs of a pressed and a dense model as plain data.

    Parameters
    ----------
    dense, pressed : nn.Module
        The models.
    example_inputs : Tensor, sequence or mapping, optional
        Arguments of a forward pass, for multiply–accumulates and times.
    plan : Plan, optional
        The plan of the pressed model, with the reasons for layers that stay dense.

    Raises
    ------
    InvalidArgumentError
        If the inputs do not fit, or a weight has no finite values.
    ModelMismatchError
        If a pressed layer has no counterpart of its shape in the dense model.
    """
    plans = plan_from_model(pressed).layers
    model = DenseModel.from_module(dense, example_inputs, None)
    layers = []
    for planned in plans:
        try:
            layers.append(_describe_layer(planned, model, pressed))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"layer {planned.name!r}: {error}") from error
    costs = _compare_costs(model, DenseModel.from_module(pressed, example_inputs, None))
    if example_inputs is not None:
        costs["latency_ms"] = _compare_latency(dense, pressed, example_inputs)
        names = [layer["name"] for layer in layers]
        dense_ms = time_layers(dense, _locate_layers(dense, names), example_inputs)
        pressed_ms = time_layers(pressed, _locate_layers(pressed, names), example_inputs)
        for layer in layers:
            layer["dense_ms"] = dense_ms.get(layer["name"])
            layer["ms"] = pressed_ms.get(layer["name"])
    return {
        "costs": costs,
        "layers": layers,
        "unpressed": _explain_dense(model, plans, {} if plan is None else plan.unpressed),
        "environment": describe_environment(pressed),
    }


def describe_environment(model: nn.Module) -> dict[str, Any]:
    """Return the versions and the device with which a model is measured."""
    return {
        "tensorpress": version("tensorpress"),
        "torch": torch.__version__,
        "python": python_version(),
        "device": f"{next(model.parameters()).device.type}, {machine()}",
        "threads": torch.get_num_threads(),
    }


def _compare_costs(dense: DenseModel, pressed: DenseModel) -> dict[str, dict[str, Any]]:
    pairs = {"params": (dense.params, pressed.params), "bytes": (dense.bytes, pressed.bytes)}
    if dense.macs is not None and pressed.macs is not None:
        pairs["macs"] = (dense.macs, pressed.macs)
    return {name: {"dense": before, "compressed": now} for name, (before, now) in pairs.items()}


def _compare_latency(
    dense: nn.Module, pressed: nn.Module, example_inputs: ExampleInputs
) -> dict[str, Any]:
    times = time_passes((dense, pressed), example_inputs, seconds=20)
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75), axis=1).tolist()
    return {
        "dense": middle[0],
        "compressed": middle[1],
        "quartiles": {"dense": [low[0], high[0]], "compressed": [low[1], high[1]]},
    }


def _locate_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    return {name: locate_weight(model, name)[0] for name in names}


def _describe_layer(plan: LayerPlan, model: DenseModel, pressed: nn.Module) -> dict[str, Any]:
    """Return one pressed layer as plain data."""
    layer = model.layers.get(plan.name)
    if layer is None or layer.shape != plan.shape:
        shape = "is missing" if layer is None else f"has shape {layer.shape}"
        raise ModelMismatchError(
            f"layer {plan.name!r} of the pressed model replaces a weight of shape {plan.shape}, "
            f"but in the dense model it {shape}"
        )
    kernel = layer.kernel(plan.method)
    plan = replace(plan, calls=() if plan.method.of_weight else layer.calls)
    weight = layer.weight.detach().double()
    module, key = locate_weight(pressed, plan.name)
    for name, factor in module.state_dict().items():
        if factor.is_floating_point() and not bool(factor.isfinite().all()):
            raise InvalidArgumentError(f"its {name!r} has NaN or infinite values")
    rebuilt = dense_weight(module, key).to(weight)
    size, distance = float(weight.norm()), float((weight - rebuilt).norm())
    return {
        "name": plan.name,
        "kind": type(layer.module).__name__,
        "scheme": plan.scheme,
        "shape": list(plan.shape),
        "ranks": list(plan.ranks),
        "dense_params": plan.dense_params,
        "params": plan.factor_params,
        "dense_macs": plan.dense_macs if plan.calls else None,
        "macs": plan.macs if plan.calls else None,
        "error": finite(distance / size) if size else None,
        "curves": [
            _error_curve(spectrum.values) for spectrum in plan.method.spectra(plan.spec, kernel)
        ],
    }


def _error_curve(values: Tensor) -> dict[str, list[float]]:
    """Return relative errors of the best approximations by rank.

    By Eckart and Young, error(r)² = Σ_{i > r} σᵢ² / Σᵢ σᵢ².
    """
    energy = values.double().square().reshape(-1, values.shape[-1]).sum(0)
    left = (energy.sum() - energy.cumsum(0)).clamp_min(0) / energy.sum().clamp_min(1e-300)
    errors = left.sqrt().tolist()
    count = len(errors)
    ranks = sorted({round(count ** (k / (_MAX_POINTS - 1))) for k in range(_MAX_POINTS)})
    return {"ranks": ranks, "errors": [round(errors[rank - 1], 5) for rank in ranks]}


def _explain_dense(
    model: DenseModel, plans: Sequence[LayerPlan], reasons: Mapping[str, str]
) -> dict[str, str]:
    """Return the layers that stay dense with reasons, those of a plan first."""
    pressed = {plan.name for plan in plans}
    result = dict(model.unpressed)
    for name, layer in model.layers.items():
        if name not in pressed:
            result[name] = reasons.get(name) or _why_dense(layer)
    return result


def _why_dense(layer: Layer) -> str:
    """Return why a layer is not pressed, judged by the layer alone."""
    schemes, reason = applicable_schemes(layer, [scheme_named(name) for name in AUTO])
    if not schemes:
        return reason
    smallest = [plan_with_ranks(layer, scheme, FractionRanks(1e-9)) for scheme in schemes]
    if all(refuse_no_gain(plan) for plan in smallest):
        return NO_RANKS
    return "it could be pressed, but the plan leaves it dense"
