"""What a recipe may say, checked by pydantic; every error names the key."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from tensorpress.codec.quantize import Rounding, UniformQuantizer
from tensorpress.codec.specs import Coder
from tensorpress.data import AUGMENTATIONS, MIXED
from tensorpress.errors import (
    DataNotFoundError,
    InvalidArgumentError,
    TensorPressError,
    unknown_name,
)
from tensorpress.planning.budget import parse_budget
from tensorpress.planning.choose import AUTO_NAME, check_target, schemes_of
from tensorpress.planning.layer_plans import TUCKER_SCHEMES
from tensorpress.planning.spread import Spread
from tensorpress.pressing import Start
from tensorpress.ranks.rules import NAMES, rank_rule
from tensorpress.reconstruct.layerwise import Reconstruct, check_reconstruction
from tensorpress.strict_yaml import parse_yaml
from tensorpress.train.config import TrainConfig
from tensorpress.validation import SHORT, validated
from tensorpress.zoo import network

Count = Annotated[int, Field(ge=1)]


Schemes = str | tuple[str, ...]


def _known(schemes: Schemes) -> Schemes:
    schemes_of(schemes)
    return schemes


def _one_message(expected: str) -> WrapValidator:
    """Make the mistakes of a union's members one mistake."""

    def validate(value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validated(value)
        except ValidationError:
            raise ValueError(f"expected {expected} (got {SHORT.repr(value)})") from None

    return WrapValidator(validate)


def _rank_name(name: str) -> str:
    if name not in get_args(Spread):
        rank_rule(name)
    return name


def _budget(text: str) -> str:
    parse_budget(text)
    return text


Scheme = Annotated[
    Schemes, _one_message("a scheme, auto, or a list of schemes"), AfterValidator(_known)
]
Modes = Annotated[
    tuple[Count, ...] | Literal["original"], _one_message("a list of positive sizes, or original")
]
Rank = Annotated[int, Field(ge=1, strict=True)]
RankName = Annotated[str, AfterValidator(_rank_name)]
Fraction = Annotated[float, Field(gt=0, le=1, strict=True)]
Ranks = Annotated[
    tuple[Rank, ...] | Rank | Fraction | RankName,
    _one_message(f"a list of positive numbers, one for all, a fraction, {' or '.join(NAMES)}"),
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    """The data set, how much of its training part validates, and how training images vary.

    After ``variants`` epochs the same varied images come again, and teachers remember what they
    said of them.
    """

    name: str
    root: Path | None = None
    validation: Annotated[int, Field(ge=0)]
    augment: str | None = None
    variants: Count | None = None
    batch_size: Count = 256

    @field_validator("augment")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in AUGMENTATIONS:
            raise unknown_name("augmentation", name, AUGMENTATIONS)
        return name


class Teacher(_Section):
    """A trained network to listen to instead of the dense one, such as a larger one.

    ``weights`` are a safetensors file, relative to the data folder.
    """

    network: str
    weights: Path

    @field_validator("network")
    @classmethod
    def _known(cls, name: str) -> str:
        return network(name).name


class LayerPress(_Section):
    """What is done with a layer, or with all layers a pattern names.

    ``modes``, ``diagonal`` and ``reduced`` are of (s)cada_tucker; without ``ranks`` those for all
    layers hold.
    """

    scheme: Annotated[str, AfterValidator(_known)] | None = None
    modes: Modes | None = None
    ranks: Ranks | None = None
    diagonal: bool | None = None
    reduced: bool | None = None


class Press(_Section):
    """Which layers are pressed and how: what `tensorpress.plan` and `tensorpress.press` take.

    See `tensorpress.plan` for what goes together. With ``calibrate``, a number of training images,
    factors are fitted to responses as ``reconstruct`` says. With ``norms`` chains that start at
    random are trained with a norm between their factors, which take it in at the end.
    """

    scheme: Scheme = AUTO_NAME
    ranks: Ranks | None = None
    targets: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()
    overrides: dict[str, LayerPress] | None = None
    budget: Annotated[str, AfterValidator(_budget)] | None = None
    round_to: Count = 1
    start: Start | None = None
    calibrate: Count | None = None
    reconstruct: Reconstruct | None = None
    norms: bool = False

    @model_validator(mode="after")
    def _one_target(self) -> "Press":
        check_target(
            schemes_of(self.scheme),
            ranks=self.ranks,
            budget=self.budget,
            overrides=self.overrides,
        )
        check_reconstruction(
            self.reconstruct, self.calibrate is not None, self.chosen_start, processes=1
        )
        if self.norms and self.chosen_start == "hooi":
            raise ValueError("norms are for a start at random: give start: kaiming or glorot")
        return self

    @property
    def chosen_start(self) -> Start:
        """The start asked for; by default (s)cada_tucker trains from scratch, others do not."""
        return self.start or ("kaiming" if self.scheme in TUCKER_SCHEMES else "hooi")


class Quantize(_Section):
    """How the file is made: quantizer, coder, and how long to train with quantized weights.

    Either ``levels`` and ``bound``, which are Q and b of eq. 13 for all parameters alike, or
    ``step``, in units of each parameter's root mean square. ``norms`` says how the parameters of
    normalization layers are stored, and floating buffers.
    """

    levels: Count | None = None
    bound: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    step: Annotated[float, Field(gt=0, le=4)] | None = None
    rounding: Rounding = "nearest"
    coder: Coder = "range"
    norms: Literal["half", "float32"] = "half"
    finetune: TrainConfig | None = None

    @model_validator(mode="after")
    def _one_quantizer(self) -> "Quantize":
        fixed = self.levels is not None and self.bound is not None
        partly = self.levels is not None or self.bound is not None
        if partly == (self.step is not None) or partly != fixed:
            raise ValueError("give levels and bound, or step")
        if self.levels is not None and self.bound is not None:
            UniformQuantizer(self.levels, self.bound)
        return self


class Rate(_Section):
    """How the network is trained for few bytes: loss + ``tradeoff`` · kilobytes of its parameters.

    First, for ``noise``, with noise in place of rounding, and then, for ``hard``, rounded. ``step``
    is the first quantization step of each parameter, in units of its root mean square. With
    ``calibrate``, weights are rounded to a file of so many bytes before, by calibration on training
    images.
    """

    tradeoff: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    step: Annotated[float, Field(gt=0, le=4)] = 0.125
    calibrate: Count | None = None
    noise: TrainConfig | None = None
    hard: TrainConfig


class Recipe(_Section):
    """A whole run: a network and data in, a file and a report out.

    The dense network comes from ``weights`` (safetensors, relative to the data folder), or is
    trained here as ``dense`` says; without ``press`` it stays dense. ``train`` trains the pressed
    network; then ``quantize`` or ``rate`` makes the file. Examples are in the project's
    ``recipes/``.
    """

    title: str
    network: str
    data: Data
    weights: Path | None = None
    dense: TrainConfig | None = None
    teacher: Teacher | None = None
    press: Press | None = None
    train: TrainConfig | None = None
    quantize: Quantize | None = None
    rate: Rate | None = None

    @field_validator("network")
    @classmethod
    def _known(cls, name: str) -> str:
        return network(name).name

    @model_validator(mode="after")
    def _one_source(self) -> "Recipe":
        if (self.weights is None) == (self.dense is None):
            raise ValueError("give either weights (a file) or dense (how to train them)")
        if (self.quantize is None) == (self.rate is None):
            raise ValueError("give either quantize or rate, which say how the file is made")
        if any("seed" in phase.model_fields_set for phase in self._trainings()):
            raise ValueError("the seed is given to the run, not in the recipe")
        if self.press is not None and self.press.norms and self.train is None:
            raise ValueError("press.norms are for training: give train (how long and how fast)")
        return self

    @model_validator(mode="after")
    def _teacher_fits(self) -> "Recipe":
        if self.teacher is None:
            return self
        if not any(phase.distill is not None for phase in self._trainings()):
            raise ValueError("nobody listens to the teacher: give a training distill")
        own, other = network(self.network), network(self.teacher.network)
        if (own.input_shape, own.classes, own.preprocess) != (
            other.input_shape,
            other.classes,
            other.preprocess,
        ):
            raise ValueError(
                f"teacher.network {other.name} takes other images, or tells other classes, than "
                f"{own.name}"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> "Recipe":
        listening = (
            phase.distill is not None and phase.distill.weight == 1 for phase in self._trainings()
        )
        if self.data.augment in MIXED and not all(listening):
            raise ValueError(
                f"augment {self.data.augment} mixes images, of which labels say nothing: every "
                "training needs distill with weight 1"
            )
        return self

    def _trainings(self) -> list[TrainConfig]:
        finetune = self.quantize and self.quantize.finetune
        rated = (self.rate.noise, self.rate.hard) if self.rate else ()
        return [p for p in (self.dense, self.train, finetune, *rated) if p is not None]

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `read_recipe` takes, without what is left at default.

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
        If it is not YAML, or a key is unknown, missing or has a value that cannot be used; the
        message names the key and what was expected.
    """
    file = Path(path)
    if not file.is_file():
        raise DataNotFoundError(f"no recipe at {file}")
    try:
        return parse_recipe(file.read_text(encoding="utf-8"))
    except (TensorPressError, UnicodeDecodeError, OSError) as error:
        raise InvalidArgumentError(f"{file}: {error}") from None


def parse_recipe(text: str) -> Recipe:
    """Parse and check a recipe given as YAML text.

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
    return validated(Recipe, parse_yaml(text), "recipe")
