"""Compares several models: their sizes, costs, times, outputs and errors."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from tensorpress.calibrate.batches import CalibrationBatch, collect_batches
from tensorpress.compress.model_report import describe_environment
from tensorpress.compress.reference import Reference
from tensorpress.compress.result import finite
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure import count_bytes, count_macs, count_params
from tensorpress.measure.latency import time_passes
from tensorpress.measure.layer_calls import record_inputs
from tensorpress.measure.model_inputs import ExampleInputs
from tensorpress.report.comparison_page import write_comparison_page
from tensorpress.utils.atomic_files import check_writable
from tensorpress.utils.module_tree import unwrap


def compare(
    dense: nn.Module | Mapping[str, nn.Module],
    models: Mapping[str, nn.Module],
    path: str | os.PathLike[str] | None = None,
    *,
    batches: Iterable[CalibrationBatch] | None = None,
    example_inputs: ExampleInputs | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    title: str = "Comparison",
) -> dict[str, Any]:
    """Compare several pressed models, and write a page about them.

    Parameters
    ----------
    dense : nn.Module or mapping of str to nn.Module
        The dense model, or a mapping from the names of pressed models to their dense models.
    models : mapping of str to nn.Module
        The models by the names that the page gives them.
    path : path-like, optional
        HTML file to write; it needs no network and no scripts.
    batches : iterable, optional
        Inputs, or pairs of inputs and labels, that nothing was fitted to. The outputs of each model
        are compared with its dense model's on them.
    example_inputs : Tensor, sequence or mapping, optional
        Arguments of a forward pass, for multiply–accumulates and times; by default the first batch.
        All models are timed in the same rounds.
    evaluate : callable, optional
        Returns the number that matters to you for a model.
    title : str
        The title of the page.

    Returns
    -------
    dict
        The numbers of the page as plain data for JSON; ``models`` has an entry per model.

    Raises
    ------
    InvalidArgumentError
        If there is no model, a name has no dense model, the inputs do not fit, or the file cannot
        be written.

    Examples
    --------
    >>> import torch, tensorpress as tp
    >>> net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    >>> pressed = {
    ...     f"rank {rank}": tp.press(net, tp.plan(net, scheme="channel_svd", ranks=rank))
    ...     for rank in (2, 4)
    ... }
    >>> content = compare(net, pressed, batches=[torch.randn(64, 30)])
    >>> [(row["name"], row["params"]) for row in content["models"]]
    [('dense', 830), ('rank 2', 190), ('rank 4', 350)]
    """
    if path is not None:
        check_writable(path)
    origins = dict.fromkeys(models, dense) if isinstance(dense, nn.Module) else dense
    missing = [name for name in models if name not in origins]
    if missing or not models:
        raise InvalidArgumentError(
            f"there is no dense model for {', '.join(map(repr, missing))}"
            if missing
            else "there are no models to compare"
        )
    rows = {name: unwrap(m) for name, m in {**_name_dense(origins, models), **models}.items()}
    data = None if batches is None else collect_batches(batches, next(iter(origins.values())))
    if example_inputs is None and data:
        example_inputs = data[0].arguments
    entries = {
        name: {"name": name, "params": count_params(model), "bytes": count_bytes(model)}
        for name, model in rows.items()
    }
    if example_inputs is not None:
        for model in rows.values():
            record_inputs(model, example_inputs, ())  # raises an error that names the inputs
        times = time_passes(list(rows.values()), example_inputs, seconds=20)
        for (name, model), passes in zip(rows.items(), times, strict=True):
            low, middle, high = np.quantile(passes, (0.25, 0.5, 0.75)).tolist()
            entries[name] |= {
                "macs": count_macs(model, example_inputs),
                "latency_ms": middle,
                "quartiles_ms": [low, high],
            }
    if evaluate is not None:
        for name, model in rows.items():
            entries[name]["metric"] = finite(float(evaluate(model)))
    references: dict[int, Reference] = {}
    for name, model in models.items() if data else ():
        origin = origins[name]
        reference = references.setdefault(id(origin), Reference(origin, data or []))
        result = reference.compare(model)
        entries[name] |= {"fidelity": result.to_dict(), "verdict": result.verdict}
    content = {
        "title": title,
        "models": list(entries.values()),
        "environment": describe_environment(next(iter(models.values()))),
    }
    if path is not None:
        write_comparison_page(content, path)
    return content


def _name_dense(
    dense: Mapping[str, nn.Module], models: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """Return the distinct dense models by name."""
    distinct: dict[int, str] = {}
    for name in models:
        distinct.setdefault(id(dense[name]), name)
    if len(distinct) == 1:
        return {"dense": dense[next(iter(models))]}
    return {f"dense of {name}": dense[name] for name in models if name in distinct.values()}
