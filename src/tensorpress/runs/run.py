"""A run: from a recipe to a trained pressed model, a file, measurements and a report."""

import json
import os
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from tensorpress.codec.inspect import inspect
from tensorpress.codec.model_tensors import assign_quantizers, quantized_names
from tensorpress.codec.quantizers import UniformQuantizer
from tensorpress.codec.save_load import Quantizers, load, save
from tensorpress.data.sources import short_name
from tensorpress.data.splits import find_weights, load_splits
from tensorpress.data.transforms import network_options
from tensorpress.errors import InvalidArgumentError
from tensorpress.models.classifier import classifier_name
from tensorpress.models.origin import Origin
from tensorpress.models.zoo import NETWORKS
from tensorpress.planning import Plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.press.factor_norms import factor_norms
from tensorpress.press.press import Init, press
from tensorpress.report import ReportContent, write_page
from tensorpress.runs.metrics import RunRecord, report_content, run_metrics
from tensorpress.runs.recipe import Recipe
from tensorpress.runs.recipe_network import recipe_network
from tensorpress.runs.recipe_plan import try_plan
from tensorpress.runs.recipe_sections import Quantize
from tensorpress.runs.training import Phases, common_part, press_once
from tensorpress.train import StraightThrough
from tensorpress.utils.atomic_files import make_folder, remove_leftovers, write_atomically

WRITTEN = (
    *("recipe.yaml", "plan.yaml", "checkpoints", "model.tpz", "metrics.json", "report.html"),
    "origin.json",
)
"""The files and folders that a run writes."""


@dataclass(frozen=True)
class RunResult:
    """The folder, measurements and report content of a finished run."""

    folder: Path
    metrics: dict[str, Any]
    content: ReportContent


def run(
    recipe: Recipe,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    test: bool = True,
    common: Path | None = None,
) -> RunResult:
    """Run a recipe, from the dense network to the report.

    The steps: train or load the dense network, plan, press, train; quantize and train again with
    quantized weights, or train for size; save, decode the file, and test. The test set is only used
    for the final numbers.

    Parameters
    ----------
    recipe : Recipe
        The recipe.
    folder : path-like
        Folder for ``recipe.yaml``, ``plan.yaml``, ``metrics.json``, ``model.tpz``, ``origin.json``,
        ``report.html`` and ``checkpoints/``. If a run of the same recipe and seed was interrupted
        there, it continues after its last complete epoch; on a CPU the result is the same.
    seed : int
        Seed of all random numbers.
    test : bool
        Whether to measure errors on the test images, or else on the validation images, as when
        choosing between recipes.
    common : Path, optional
        Folder with checkpoints that several runs share; see `train_common`.

    Raises
    ------
    InvalidArgumentError
        If the folder has results of another recipe or seed or cannot be written to, the seed is not
        from 0 to 2**32 - 1, or there are no validation images although they are needed.
    TensorPressError
        If any step fails.
    """
    started = perf_counter()
    if not 0 <= seed < 1 << 32:
        raise InvalidArgumentError(f"the seed must be from 0 to {(1 << 32) - 1}, got {seed}")
    if not (test or recipe.data.validation):
        raise InvalidArgumentError(
            "data.validation is 0, but errors are to be measured on validation images"
        )
    out = Path(folder)
    _claim_folder(out, recipe, seed)
    for name in WRITTEN:
        remove_leftovers(out / name)
    net = recipe_network(recipe)
    try_plan(net, recipe)
    splits = load_splits(net, recipe.data.origin, recipe.data.root, recipe.data.validation)
    phases = Phases(recipe, net, splits, out, seed, common)
    _origin(phases, recipe).write(out)
    models = _train(phases, recipe, seed)
    path = out / "model.tpz"
    size = recipe.quantize
    options: dict[str, Any] = {} if size is None else {"norms": size.norms, "coder": size.coder}
    in_zoo = net.name in NETWORKS
    options |= {"network": net.name if in_zoo else None, "data": short_name(recipe.data.origin)}
    options["preprocess"] = _origin(phases, recipe).preprocess
    save(models.final, path, quantizer=models.quantizers, **options)
    decoded = load(path, None if in_zoo else models.dense).to(models.device)
    error = phases.test_error if test else phases.validation_error
    record = RunRecord(
        recipe=recipe,
        seed=seed,
        plan=models.plan,
        dense=models.dense,
        initial=models.initial,
        latent=models.final if recipe.rate is None else models.trained,
        decoded=decoded,
        inspection=inspect(path),
        histories=phases.histories,
        errors={
            "dense": error(models.dense),
            "start": None if models.initial is None else error(models.initial),
            "pressed": error(models.trained),
            "file": error(decoded),
            "validation": phases.validation_error(decoded),
        },
        errors_on="test" if test else "validation",
        seconds=perf_counter() - started + phases.earlier_seconds,
        example=phases.example_batch().to(models.device),
    )
    metrics = run_metrics(record)
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=1).encode() + b"\n")
    content = report_content(record, metrics)
    write_page(content, out / "report.html")
    return RunResult(out, metrics, content)


def train_common(recipe: Recipe, common: Path, phase: str, seed: int) -> None:
    """Train up to a phase that several runs have in common, once for all of them.

    Parameters
    ----------
    recipe : Recipe
        The recipe of any of the runs.
    common : Path
        The folder ``common`` of `run`.
    phase : {"dense", "train"}
        The last common phase: "dense" for runs that press the same network differently, "train" for
        runs that differ only in how the file is made.
    seed : int
        The seed of the runs.
    """
    net, folder = recipe_network(recipe), common / common_part(recipe, phase, seed)
    make_folder(folder)
    splits = load_splits(net, recipe.data.origin, recipe.data.root, recipe.data.validation)
    phases = Phases(recipe, net, splits, folder, seed, common)
    if phase == "dense":
        phases.dense_model()
    else:
        _train_pressed(phases, recipe, seed)


@dataclass(frozen=True)
class _Models:
    """The network at every stage of a run: dense, decomposed, trained, and trained for the file.

    ``initial`` is None if factors are random. ``final`` goes into the file, rounded by
    ``quantizers``, and ``plan`` is its plan.
    """

    plan: Plan
    dense: nn.Module
    initial: nn.Module | None
    trained: nn.Module
    final: nn.Module
    quantizers: Quantizers
    device: torch.device


def _train(phases: Phases, recipe: Recipe, seed: int) -> _Models:
    """Run all training phases of the recipe."""
    dense, chosen, initial, pressed = _train_pressed(phases, recipe, seed)
    trained = deepcopy(pressed)
    if recipe.rate is not None:
        trained_for_size = phases.train_for_size(pressed, recipe.rate, teacher=dense)
        quantizers: Quantizers = {**assign_quantizers(pressed), **trained_for_size}
        chosen = replace(plan_from_model(pressed), unpressed=chosen.unpressed)
    else:
        quantizers = _train_quantized(phases, pressed, recipe, dense)
    device = next(pressed.parameters()).device
    for model in (dense, trained, initial):
        if model is not None:
            model.to(device)
    return _Models(chosen, dense, initial, trained, pressed, quantizers, device)


def _train_pressed(
    phases: Phases, recipe: Recipe, seed: int
) -> tuple[nn.Module, Plan, nn.Module | None, nn.Module]:
    """Return the dense network, its plan, the decomposed network or None, and the trained one."""
    dense = phases.dense_model()
    chosen = phases.make_plan(dense)
    section = recipe.press
    init: Init = "decompose" if section is None else section.resolved_init
    if section is None or section.calibrate is None:
        pressed = press(dense, chosen, init=init, seed=seed)
    else:
        images, path = phases.press_batches(), phases.checkpoint_folder("train") / "pressed.pt"
        fit = {"calibration": images, "reconstruct": section.reconstruct}
        pressed = press_once(dense, chosen, path, init=init, seed=seed, **fit)
    initial = deepcopy(pressed) if init == "decompose" else None
    if recipe.train is not None:
        normed = section is not None and section.norms
        with factor_norms(pressed) if normed else nullcontext(pressed) as trained:
            phases.fit("train", trained, recipe.train, teacher=dense)
    return dense, chosen, initial, pressed


def _train_quantized(
    phases: Phases, model: nn.Module, recipe: Recipe, dense: nn.Module
) -> Quantizers:
    """Train a model with rounded weights, if the recipe says so, and return the quantizers."""
    assert recipe.quantize is not None
    quantizers = make_quantizers(model, recipe.quantize)
    finetune = recipe.quantize.finetune
    if finetune is not None:
        rounding = StraightThrough(quantizers)
        phases.fit("quantized", model, finetune, teacher=dense, weights=rounding)
    return quantizers


def make_quantizers(model: nn.Module, section: Quantize) -> Quantizers:
    """Return the quantizer of every parameter."""
    if section.levels is not None and section.bound is not None:
        quantizer = UniformQuantizer(section.levels, section.bound, section.rounding)
        return dict.fromkeys(quantized_names(model), quantizer)
    assert section.step is not None
    return assign_quantizers(model, step=section.step)


def _origin(phases: Phases, recipe: Recipe) -> Origin:
    """Return the dense network, weights and data of the run, for ``origin.json``."""
    images, weights = network_options(phases.net), None
    if recipe.dense is not None:
        weights = phases.dense_file
    elif recipe.weights is not None:
        weights = find_weights(recipe.weights, recipe.data.root)
    return Origin(
        model=classifier_name(phases.net.name, phases.net.classes),
        weights=None if weights is None else str(weights),
        data=recipe.data.origin,
        preprocess=None if images is None else str(images),
    )


def _claim_folder(out: Path, recipe: Recipe, seed: int) -> None:
    """Write the recipe to the folder, or check that results in the folder are of this recipe."""
    text = f"# seed: {seed}\n{recipe.to_yaml()}"
    path = out / "recipe.yaml"
    results = any((out / name).exists() for name in ("checkpoints", "model.tpz", "metrics.json"))
    try:
        if path.exists() and path.read_bytes() == text.encode():
            return
        if results:
            raise InvalidArgumentError(
                f"{out} has a run of another recipe or seed ({path}): choose another folder"
            )
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgumentError(f"{out} cannot be the output folder: {error.strerror}") from None
    write_atomically(path, text.encode())
