"""The training phases of a run, and the pressed model that an interrupted run continues with."""

import logging
from collections.abc import Iterator
from copy import deepcopy
from hashlib import sha256
from itertools import islice
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.data import Splits, batches
from tensorpress.data.loaders import BatchLoader
from tensorpress.data.splits import find_weights
from tensorpress.models.weights import load_weights
from tensorpress.models.zoo import Network
from tensorpress.planning import Plan
from tensorpress.press.press import build_skeleton, press
from tensorpress.quantize.noisy_model import RateModel
from tensorpress.quantize.train_for_size import round_by_calibration, train_in_phases
from tensorpress.runs.recipe import Recipe
from tensorpress.runs.recipe_network import load_dense_weights, teacher_network
from tensorpress.runs.recipe_plan import plan_recipe
from tensorpress.runs.recipe_sections import Rate
from tensorpress.schemes.parametrization import FactorizedWeight
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.train import History, TrainConfig, evaluate, fit
from tensorpress.train.batches import Batch
from tensorpress.train.checkpoint import (
    read_checkpoint,
    refuse_damage,
    restore_model,
    write_checkpoint,
)
from tensorpress.train.distillation import CachedTeacher
from tensorpress.train.epoch import Penalty
from tensorpress.utils.atomic_files import make_folder

_KEYS = {"model", "errors"}


def press_once(dense: nn.Module, plan: Plan, path: Path, **options: Any) -> nn.Module:
    """Press a copy of a model, or load it if an interrupted run has already pressed it.

    Parameters
    ----------
    dense : nn.Module
        The model.
    plan : Plan
        The plan.
    path : Path
        The file of the pressed model.
    **options
        Keyword arguments of `tensorpress.press`.

    Raises
    ------
    CorruptFileError
        If the file is damaged.
    ModelMismatchError
        If the file has another model or plan.
    """
    if path.exists():
        return _restore_pressed(build_skeleton(deepcopy(dense), plan), path)
    model = press(dense, plan, **options)
    errors = {name: module.relative_error for name, module in _modules_with_errors(model)}
    make_folder(path.parent)
    write_checkpoint(path, {"model": model.state_dict(), "errors": errors})
    return model


def _restore_pressed(model: nn.Module, path: Path) -> nn.Module:
    content = read_checkpoint(path, _KEYS)
    with refuse_damage(path):
        restore_model(path, model, content["model"])
        for name, module in _modules_with_errors(model):
            error = content["errors"][name]  # None for a layer fitted to responses
            module.relative_error = None if error is None else float(error)
    return model


def _modules_with_errors(model: nn.Module) -> list[tuple[str, Pressed | FactorizedWeight]]:
    """Return the modules that have a relative error."""
    modules = model.named_modules()
    return [(name, x) for name, x in modules if isinstance(x, Pressed | FactorizedWeight)]


EVALUATION_BATCH = 1000
CALIBRATION_IMAGES, CALIBRATION_BATCH = 512, 64

logger = logging.getLogger("tensorpress.runs")


COMMON_PHASES = ("dense", "train")
"""The phases before it matters how the file is made."""


def common_part(recipe: Recipe, phase: str, seed: int) -> str:
    """Return a hash of the settings that affect a run up to the end of a phase."""
    later = {"title", "quantize", "rate"}
    if phase == "dense":
        later |= {"teacher", "press", "train"}
    text = f"{recipe.model_dump_json(exclude=later)} {seed}"
    return sha256(text.encode()).hexdigest()[:16]


class Phases:
    """The training phases of a run, with their data, checkpoints and histories.

    ``common`` is an optional folder for the checkpoints of phases that runs have in common.
    """

    def __init__(
        self,
        recipe: Recipe,
        net: Network,
        splits: Splits,
        folder: Path,
        seed: int,
        common: Path | None = None,
    ) -> None:
        self.recipe, self.net, self.splits, self.seed = recipe, net, splits, seed
        self.folder, self._common = folder, common
        self.histories: dict[str, History] = {}
        self.earlier_seconds = 0.0  # of training, in interrupted processes
        self._validation = self._evaluation_batches(splits.validation)
        self._teacher = self._load_teacher()  # before hours of training, because it may be missing

    def dense_model(self) -> nn.Module:
        """Return the dense network with the recipe's weights, or trained with its settings."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self.net.build()
        if self.recipe.weights is not None:
            load_dense_weights(model, self.recipe, self.net)
        if self.recipe.dense is not None:
            self.fit("dense", model, self.recipe.dense)
        return model.eval()

    def make_plan(self, dense: nn.Module) -> Plan:
        """Make the plan, or read it if an interrupted run made it.

        A second plan could differ, because some plans depend on measured times.
        """
        file, common = (
            folder / "plan.yaml" for folder in (self.folder, self.checkpoint_folder("train"))
        )
        if not file.exists():
            stored = Plan.read(common) if common.exists() else None
            (stored or plan_recipe(dense, self.recipe, self.press_batches())).save(file)
        return Plan.read(file)

    def fit(self, phase: str, model: nn.Module, config: TrainConfig, **options: Any) -> None:
        """Train a model in place, starting from the checkpoint of this phase if there is one."""
        if config.distill is None:
            options.pop("teacher", None)
        else:
            options["teacher"] = self._choose_teacher(options["teacher"])
        logger.info("%s: %d epochs", phase, config.epochs)
        data = self.recipe.data
        training = batches(
            self.splits.train,
            self.net.preprocess,
            data.batch_size,
            shuffle=True,
            seed=self.seed,
            augment=data.augment,
            variants=data.variants,
        )
        place = self.checkpoint_folder(phase)
        make_folder(place)
        started = perf_counter()
        history = fit(
            model,
            training,
            config.model_copy(update={"seed": self.seed}),
            validation=self._validation,
            checkpoint=place / f"{phase}.pt",
            **options,
        )
        trained = sum(epoch.seconds for epoch in history.epochs)
        self.earlier_seconds += max(0.0, trained - (perf_counter() - started))
        self.histories[phase] = history

    def checkpoint_folder(self, phase: str) -> Path:
        """Return the folder for a phase's checkpoints."""
        if self._common is not None and phase in COMMON_PHASES:
            return self._common / common_part(self.recipe, phase, self.seed)
        return self.folder / "checkpoints"

    @property
    def dense_file(self) -> Path:
        """The checkpoint of the dense network, if the recipe trains it."""
        return self.checkpoint_folder("dense") / "dense.pt"

    def train_for_size(
        self, model: nn.Module, section: Rate, teacher: nn.Module
    ) -> dict[str, StepQuantizer]:
        """Train a model in place for loss and size, and return the quantizers of its parameters."""

        def train(phase: str, rated: RateModel, penalty: Penalty) -> None:
            config = section.noise if phase == "noise" else section.hard
            if config is not None:
                self.fit(phase, rated, config, teacher=teacher, penalty=penalty)

        steps = {}
        if section.calibrate is not None:
            images = self.calibration_batches(CALIBRATION_IMAGES)
            steps = round_by_calibration(model, images, section.calibrate)
        return train_in_phases(
            model, train, tradeoff=section.tradeoff, step=section.step, steps=steps
        )

    def press_batches(self) -> Iterator[Batch]:
        """Return the calibration batches for pressing, if any."""
        section = self.recipe.press
        return self.calibration_batches(0 if section is None else section.calibrate or 0)

    def calibration_batches(self, images: int) -> Iterator[Batch]:
        """Return batches with a minimum number of training images, without augmentation."""
        loader = batches(
            self.splits.train, self.net.preprocess, CALIBRATION_BATCH, shuffle=True, seed=self.seed
        )
        return islice(iter(loader), ceil(images / CALIBRATION_BATCH))

    def test_error(self, model: nn.Module) -> float:
        """Return the error on the test set in percent."""
        loader = self._evaluation_batches(self.splits.test)
        assert loader is not None
        error = evaluate(model, loader).error
        assert error is not None
        return error

    def validation_error(self, model: nn.Module) -> float | None:
        """Return the error on the validation images in percent."""
        return evaluate(model, self._validation).error if self._validation else None

    def example_batch(self) -> torch.Tensor:
        """Return a batch of preprocessed test images."""
        return self.net.preprocess(self.splits.test.images[:64])

    def _choose_teacher(self, dense: nn.Module) -> nn.Module:
        """Return the teacher of the recipe, or the dense network."""
        teacher = dense if self._teacher is None else self._teacher
        if self.recipe.data.variants is not None and not isinstance(teacher, CachedTeacher):
            teacher = CachedTeacher(teacher)
        self._teacher = teacher
        return teacher

    def _load_teacher(self) -> nn.Module | None:
        section = self.recipe.teacher
        if section is None:
            return None
        teacher = teacher_network(self.recipe, section.network).build()
        load_weights(teacher, find_weights(section.weights, self.recipe.data.root))
        return teacher

    def _evaluation_batches(self, images: Any) -> BatchLoader | None:
        if not len(images):
            return None
        return batches(images, self.net.preprocess, EVALUATION_BATCH, shuffle=False)
