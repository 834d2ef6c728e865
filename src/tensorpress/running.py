"""A run: a recipe becomes a trained pressed model, a file, measurements and a report."""

import json
import logging
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import nn

from tensorpress.codec.contents import quantized_names, quantizers_for
from tensorpress.codec.file import load, save
from tensorpress.codec.inspect import inspect
from tensorpress.codec.quantize import UniformQuantizer
from tensorpress.data import Splits, batches
from tensorpress.data.loaders import BatchLoader
from tensorpress.errors import InvalidArgumentError
from tensorpress.files import write_atomically
from tensorpress.planning import Plan, plan
from tensorpress.planning.choose import schemes_of
from tensorpress.planning.layer_plans import TUCKER_SCHEMES
from tensorpress.pressing import press
from tensorpress.recipe import LayerPress, Press, Quantize, Recipe
from tensorpress.report import ReportContent, require_extra, write_page
from tensorpress.results import RunRecord, report_content, run_metrics
from tensorpress.sources import find_weights, load_splits
from tensorpress.train import History, StraightThrough, TrainConfig, evaluate, fit
from tensorpress.zoo import Network, load_weights, network

EVALUATION_BATCH = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run left: its measurements, and what the report shows."""

    folder: Path
    metrics: dict[str, Any]
    content: ReportContent


def run(recipe: Recipe, folder: str | os.PathLike[str], *, seed: int = 0) -> RunResult:
    """Carry out a recipe from the dense network to the report.

    Train or load the dense network, plan, press, train, quantize, train again with
    quantized weights, save, decode the file, and test. Choices were made in the recipe; the test
    set is looked at for the final numbers only.

    Parameters
    ----------
    recipe : Recipe
        What to do.
    folder : path-like
        Receives ``recipe.yaml``, ``plan.yaml``, ``metrics.json``, ``model.tpz``, ``report.html``
        and ``checkpoints/``. If a run of the same recipe and seed was interrupted there, it goes on
        where its last epoch ended, to the same result on CPU.
    seed : int
        Of every random number.

    Raises
    ------
    InvalidArgumentError
        If the folder holds results of another recipe or seed, or cannot be written to, or the
        seed is not from 0 to 2**32 - 1.
    TensorPressError
        For anything a user can cause; see the parts called.
    """
    started = perf_counter()
    require_extra()  # before hours of training, as the trial of the plan
    if not 0 <= seed < 1 << 32:
        raise InvalidArgumentError(f"the seed must be from 0 to {(1 << 32) - 1}, not {seed}")
    out = Path(folder)
    _claim(out, recipe, seed)
    net = network(recipe.network)
    _try_plan(net, recipe)
    splits = load_splits(net, recipe.data.name, recipe.data.root, recipe.data.validation)
    phases = _Phases(recipe, net, splits, out / "checkpoints", seed)
    models = _train(phases, recipe, seed)
    path = out / "model.tpz"
    save(
        models.quantized,
        path,
        network=recipe.network,
        quantizer=models.quantizers,
        norms=recipe.quantize.norms,
        coder=recipe.quantize.coder,
    )
    decoded = load(path).to(models.device)
    record = RunRecord(
        recipe=recipe,
        seed=seed,
        plan=models.plan,
        dense=models.dense,
        initial=models.initial,
        latent=models.quantized,
        decoded=decoded,
        inspection=inspect(path),
        histories=phases.histories,
        errors={
            "dense": phases.test_error(models.dense),
            "start": None if models.initial is None else phases.test_error(models.initial),
            "pressed": phases.test_error(models.trained),
            "file": phases.test_error(decoded),
            "validation": phases.validation_error(decoded),
        },
        seconds=perf_counter() - started + phases.earlier_seconds,
        example=phases.example().to(models.device),
    )
    metrics = run_metrics(record)
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=1).encode() + b"\n")
    content = report_content(record, metrics)
    write_page(content, out / "report.html")
    return RunResult(out, metrics, content)


@dataclass(frozen=True)
class _Models:
    """The network at every stage of a run: dense, decomposed, trained, trained quantized.

    ``initial`` is None where factors were drawn; ``quantized`` holds the latent weights, which
    ``quantizers`` round.
    """

    plan: Plan
    dense: nn.Module
    initial: nn.Module | None
    trained: nn.Module
    quantized: nn.Module
    quantizers: Mapping[str, UniformQuantizer]
    device: torch.device


def _train(phases: "_Phases", recipe: Recipe, seed: int) -> _Models:
    """Take the network through the recipe's phases."""
    dense, start = phases.dense(), recipe.press.chosen_start
    chosen = phases.planned(dense)
    pressed = press(dense, chosen, start=start, seed=seed)
    initial = deepcopy(pressed) if start == "hooi" else None
    if recipe.train is not None:
        phases.fit("train", pressed, recipe.train, teacher=dense)
    quantizers = make_quantizers(pressed, recipe.quantize)
    trained = deepcopy(pressed)
    if recipe.quantize.finetune is not None:
        rounding = StraightThrough(quantizers)
        phases.fit("quantized", pressed, recipe.quantize.finetune, teacher=dense, weights=rounding)
    device = next(pressed.parameters()).device
    if initial is not None:
        initial.to(device)
    return _Models(
        chosen, dense.to(device), initial, trained.to(device), pressed, quantizers, device
    )


def plan_for(dense: nn.Module, recipe: Recipe) -> Plan:
    """Return the plan that a recipe asks for; only rank rules with a name look at the weights."""
    section = recipe.press
    entries = section.overrides or {}
    overrides = {name: entry.model_dump(exclude_none=True) for name, entry in entries.items()}
    device = next(dense.parameters()).device
    example = torch.zeros(1, *network(recipe.network).input_shape, device=device)
    return plan(
        dense,
        None if section.budget is None else example,
        scheme=section.scheme,
        ranks=section.ranks,
        targets=section.targets,
        skip=section.skip,
        overrides=overrides or None,
        budget=section.budget,
        round_to=section.round_to,
    )


def _try_plan(net: Network, recipe: Recipe) -> None:
    """Make a recipe's plan for the untrained network, so that mistakes show before training.

    Rules that look at the weights are tried as one that keeps rank 1 of any, and budgets spread by
    them as a small saving for all: what can be met only the trained network tells.
    """
    section = recipe.press
    if section.budget is not None and schemes_of(section.scheme)[0] not in TUCKER_SCHEMES:
        tried = {
            "budget": "params=99%",
            "ranks": "uniform",
            "scheme": schemes_of(section.scheme)[0],
        }
        section = section.model_copy(update=tried)
    else:
        section = _at_rank_1(section)
    entries = section.overrides or {}
    ranks = [section.ranks, *(entry.ranks for entry in entries.values())]
    overrides = {pattern: _at_rank_1(entry) for pattern, entry in entries.items()}
    section = section.model_copy(update={"overrides": overrides or None})
    with torch.device("cpu" if any(isinstance(r, str) for r in ranks) else "meta"):
        plan_for(net.build(), recipe.model_copy(update={"press": section}))


Ranked = TypeVar("Ranked", Press, LayerPress)


def _at_rank_1(section: Ranked) -> Ranked:
    by_name = isinstance(section.ranks, str)
    return section.model_copy(update={"ranks": "energy:1e-9"}) if by_name else section


def make_quantizers(model: nn.Module, section: Quantize) -> Mapping[str, UniformQuantizer]:
    """Return the quantizer of every parameter that a recipe's section asks for."""
    if section.levels is not None and section.bound is not None:
        quantizer = UniformQuantizer(section.levels, section.bound, section.rounding)
        return dict.fromkeys(quantized_names(model), quantizer)
    assert section.step is not None
    return quantizers_for(model, step=section.step)


def _claim(out: Path, recipe: Recipe, seed: int) -> None:
    """Write the recipe into the folder, or check that it is the one of the results there."""
    text = f"# seed: {seed}\n{recipe.to_yaml()}"
    path = out / "recipe.yaml"
    results = any((out / name).exists() for name in ("checkpoints", "model.tpz", "metrics.json"))
    try:
        if path.exists() and path.read_bytes() == text.encode():
            return
        if results:
            raise InvalidArgumentError(
                f"{out} holds a run of another recipe or seed ({path}); give another folder"
            )
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgumentError(
            f"{out} cannot be the folder of a run: {error.strerror}"
        ) from None
    write_atomically(path, text.encode())


class _Phases:
    """The training phases of a run, with their data, checkpoints and histories."""

    def __init__(
        self, recipe: Recipe, net: Network, splits: Splits, checkpoints: Path, seed: int
    ) -> None:
        self.recipe, self.net, self.splits, self.seed = recipe, net, splits, seed
        self.checkpoints = checkpoints
        self.histories: dict[str, History] = {}
        self.earlier_seconds = 0.0  # of training, in processes that were interrupted
        self._validation = self._evaluation(splits.validation)

    def dense(self) -> nn.Module:
        """Return the dense network with the recipe's weights, or trained as it says."""
        torch.manual_seed(self.seed)
        model = self.net.build()
        if self.recipe.weights is not None:
            load_weights(model, find_weights(self.recipe.weights, self.recipe.data.root))
        elif self.recipe.dense is not None:
            self.fit("dense", model, self.recipe.dense)
        return model.eval()

    def planned(self, dense: nn.Module) -> Plan:
        """Return the plan, that of the run which is gone on with where there is one."""
        file = self.checkpoints.parent / "plan.yaml"
        if not file.exists():
            plan_for(dense, self.recipe).save(file)
        return Plan.read(file)

    def fit(self, phase: str, model: nn.Module, config: TrainConfig, **options: Any) -> None:
        """Train a model in place, going on from this phase's checkpoint where there is one."""
        if config.distill is None:
            options.pop("teacher", None)
        logger.info("%s: %d epochs", phase, config.epochs)
        data = self.recipe.data
        training = batches(
            self.splits.train,
            self.net.preprocess,
            data.batch_size,
            shuffle=True,
            seed=self.seed,
            augment=data.augment,
        )
        self.checkpoints.mkdir(exist_ok=True)
        started = perf_counter()
        history = fit(
            model,
            training,
            config.model_copy(update={"seed": self.seed}),
            validation=self._validation,
            checkpoint=self.checkpoints / f"{phase}.pt",
            **options,
        )
        trained = sum(epoch.seconds for epoch in history.epochs)
        self.earlier_seconds += max(0.0, trained - (perf_counter() - started))
        self.histories[phase] = history

    def test_error(self, model: nn.Module) -> float:
        """Return the error on the test set, in per cent."""
        loader = self._evaluation(self.splits.test)
        assert loader is not None
        return evaluate(model, loader).error

    def validation_error(self, model: nn.Module) -> float | None:
        """Return the error on the validation images, in per cent."""
        return evaluate(model, self._validation).error if self._validation else None

    def example(self) -> torch.Tensor:
        """Return a batch of test images as the network takes them."""
        return self.net.preprocess(self.splits.test.images[:64])

    def _evaluation(self, images: Any) -> BatchLoader | None:
        if not len(images):
            return None
        return batches(images, self.net.preprocess, EVALUATION_BATCH, shuffle=False)
