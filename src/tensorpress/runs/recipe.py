"""Recipes, checked by pydantic; every error names the key."""

import os
from pathlib import Path

import yaml
from pydantic import model_validator

from tensorpress.data import MIXED
from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.models.names import parse_name
from tensorpress.models.zoo import network
from tensorpress.runs.recipe_sections import (
    Count,
    Data,
    NetworkName,
    Press,
    Quantize,
    Rate,
    Section,
    Teacher,
)
from tensorpress.train.config import TrainConfig
from tensorpress.utils.config_parsing import parse_yaml, validate
from tensorpress.utils.formatting import format_shape
from tensorpress.utils.paths import read_file


class Recipe(Section):
    """A complete run, from a network and data to a file and a report.

    ``network`` is a network of the zoo, or the name of any other model as in
    `tensorpress.models.load_model`, which gets a head for the classes of the data. It takes images
    of shape ``input`` (channels first), by default that of the data. The dense network is loaded
    from ``weights`` (safetensors, ``.pt`` or ``.tpz``, relative to the data folder), trained with
    the settings ``dense``, or both; without ``press`` it stays dense. ``train`` trains the pressed
    network; ``quantize`` or ``rate`` then makes the file. Examples are in the project's
    ``recipes/``.
    """

    title: str
    network: NetworkName
    input: tuple[Count, ...] | None = None
    data: Data
    weights: Path | None = None
    dense: TrainConfig | None = None
    teacher: Teacher | None = None
    press: Press | None = None
    train: TrainConfig | None = None
    quantize: Quantize | None = None
    rate: Rate | None = None

    @model_validator(mode="after")
    def _check_sources(self) -> "Recipe":
        origin = parse_name(self.network).origin
        has_weights = origin not in (
            "",
            "torchvision",
            "timm",
        )  # a folder or function may have them
        if self.weights is None and self.dense is None and not has_weights:
            raise ValueError("needs weights (a file), dense (settings to train them), or both")
        if self.weights is not None and origin == "hf":
            raise ValueError(
                "weights must not be set for a Hugging Face model, whose folder has the weights"
            )
        if self.input is not None and not origin:
            shape = format_shape(network(self.network).input_shape)
            raise ValueError(
                f"input must not be set for a network of the zoo: {self.network} takes {shape}"
            )
        if (self.quantize is None) == (self.rate is None):
            raise ValueError("needs either quantize or rate, which make the file")
        if any("seed" in phase.model_fields_set for phase in self._trainings()):
            raise ValueError("the seed is an argument of the run, not part of the recipe")
        if self.press is not None and self.press.norms and self.train is None:
            raise ValueError("press.norms needs train, because norms act during training only")
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> "Recipe":
        if self.teacher is None:
            return self
        if not any(phase.distill is not None for phase in self._trainings()):
            raise ValueError("teacher needs a training phase with distill")
        names = (self.network, self.teacher.network)
        # A network from outside the zoo gets the images of the student.
        if any(parse_name(name).origin for name in names):
            return self
        student, teacher = map(network, names)
        if any(
            getattr(student, key) != getattr(teacher, key)
            for key in ("input_shape", "classes", "preprocess")
        ):
            raise ValueError(
                f"teacher.network {teacher.name} must take the same images and have the same "
                f"classes as {student.name}"
            )
        return self

    @model_validator(mode="after")
    def _check_augmentation(self) -> "Recipe":
        distilled = (
            phase.distill is not None and phase.distill.weight == 1 for phase in self._trainings()
        )
        if self.data.augment in MIXED and not all(distilled):
            raise ValueError(
                f"augment {self.data.augment} mixes images, which then have no label: every "
                "training phase needs distill with weight 1"
            )
        return self

    def _trainings(self) -> list[TrainConfig]:
        finetune = self.quantize and self.quantize.finetune
        rated = (self.rate.noise, self.rate.hard) if self.rate else ()
        return [p for p in (self.dense, self.train, finetune, *rated) if p is not None]

    def to_yaml(self) -> str:
        """Return the recipe as YAML for `read_recipe`, without default values.

        Examples
        --------
        >>> recipe = parse_recipe(EXAMPLE)
        >>> parse_recipe(recipe.to_yaml()) == recipe
        True
        """
        content = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


EXAMPLE = """\
title: LeNet-300-100 on digits
network: lenet300100
data: {name: digits, validation: 200}
dense: {epochs: 1, lr: 0.001}
press: {scheme: ada_tucker, budget: params=4000}
train: {epochs: 1, lr: 0.01}
quantize: {levels: 128, bound: 3}
"""
"""The smallest complete recipe."""


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a YAML file.

    Raises
    ------
    DataNotFoundError
        If there is no such file.
    InvalidArgumentError
        If it is not YAML, or a key is unknown, missing or has an invalid value; the message names
        the key and what was expected.
    """
    content = read_file(path, "recipe")
    try:
        return parse_recipe(content)
    except TensorPressError as error:
        raise InvalidArgumentError(f"{os.fspath(path)}: {error}") from None


def parse_recipe(text: str | bytes) -> Recipe:
    """Parse and check the YAML text of a recipe.

    Examples
    --------
    >>> parse_recipe(EXAMPLE.replace("epochs", "epoch"))  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: the recipe has mistakes:
      dense.epochs: Field required
      dense.epoch: unknown key, did you mean 'epochs' or 'step_epochs'?
      train.epochs: Field required
      train.epoch: unknown key, did you mean 'epochs' or 'step_epochs'?
    """
    return validate(Recipe, parse_yaml(text), "recipe")
