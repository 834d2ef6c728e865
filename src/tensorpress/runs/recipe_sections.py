"""The sections of a recipe, checked by pydantic; every error names the key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from tensorpress.codec.quantizers import Rounding, UniformQuantizer
from tensorpress.codec.storage import Coder
from tensorpress.data import AUGMENTATIONS
from tensorpress.errors import unknown_name
from tensorpress.models.zoo import network
from tensorpress.planning.budget import parse_budget
from tensorpress.planning.planner import (
    AUTO_NAME,
    check_allocation,
    check_target,
    parse_schemes,
)
from tensorpress.press.press import Init
from tensorpress.ranks.rules import NAMES, parse_rank_rule
from tensorpress.reconstruct.layerwise import Reconstruct, check_reconstruction
from tensorpress.schemes.registry import SCHEMES, scheme
from tensorpress.sensitivity.response_energy import RESPONSES, check_response_scheme
from tensorpress.train.config import TrainConfig
from tensorpress.utils.config_parsing import SHORT

Schemes = str | tuple[str, ...]


def _known_schemes(schemes: Schemes) -> Schemes:
    parse_schemes(schemes)
    return schemes


def _one_message(expected: str) -> WrapValidator:
    """Make the mistakes of a union's members one mistake."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {expected} (got {SHORT.repr(value)})") from None

    return WrapValidator(check)


def _rank_name(name: str) -> str:
    parse_rank_rule(name)
    return name


def _allocation_name(name: str) -> str:
    if name != RESPONSES:
        check_allocation(name)
    return name


def _budget(text: str) -> str:
    parse_budget(text)
    return text


def _network_name(name: str) -> str:
    return network(name).name


def _augmentation(name: str) -> str:
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    return name


Count = Annotated[int, Field(ge=1)]
NetworkName = Annotated[str, AfterValidator(_network_name)]
Scheme = Annotated[
    Schemes, _one_message("a scheme, auto, or a list of schemes"), AfterValidator(_known_schemes)
]
Modes = Annotated[
    tuple[Count, ...] | Literal["original"], _one_message("a list of positive sizes, or original")
]
Rank = Annotated[int, Field(ge=1, strict=True)]
RankName = Annotated[str, AfterValidator(_rank_name)]
AllocationName = Annotated[str, AfterValidator(_allocation_name)]
Fraction = Annotated[float, Field(gt=0, le=1, strict=True)]
_RANKS = f"a list of positive numbers, one for all, a fraction, {' or '.join(NAMES)}"
AnyRanks = tuple[Rank, ...] | Rank | Fraction | RankName
LayerRanks = Annotated[AnyRanks, _one_message(_RANKS)]
Ranks = Annotated[AnyRanks, _one_message(f"{_RANKS} (what spreads a budget is the allocation)")]


class Section(BaseModel):
    """A part of a recipe: every key is known, and nothing changes once read."""

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Keys of recipes written before, and what they are called now: errors name both."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """The data set, how much of its training part validates, and how training images vary.

    After ``variants`` epochs the same varied images come again, and teachers remember what they
    said of them.
    """

    name: str
    root: Path | None = None
    validation: Annotated[int, Field(ge=0)]
    augment: Annotated[str, AfterValidator(_augmentation)] | None = None
    variants: Count | None = None
    batch_size: Count = 256


class Teacher(Section):
    """A trained network to listen to instead of the dense one, such as a larger one.

    ``weights`` are a safetensors file, relative to the data folder.
    """

    network: NetworkName
    weights: Path


class LayerPress(Section):
    """What is done with a layer, or with all layers a pattern names.

    Other keys are options of the scheme, such as ``modes`` of (s)cada_tucker; without ``ranks``
    those for all layers hold.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    scheme: Annotated[str, AfterValidator(_known_schemes)] | None = None
    modes: Modes | None = None
    ranks: LayerRanks | None = None

    @model_validator(mode="after")
    def _known_options(self) -> "LayerPress":
        schemes = SCHEMES.values() if self.scheme is None else [scheme(self.scheme)]
        options = {name for one in schemes for name in one.option_names}
        for key in self.model_extra or {}:
            if key not in options:
                raise unknown_name("key", key, {*type(self).model_fields, *options})
        return self


class Press(Section):
    """Which layers are pressed and how: what `tensorpress.plan` and `tensorpress.press` take.

    See `tensorpress.plan` for what goes together. With ``calibrate``, a number of training images,
    factors are fitted to responses as ``reconstruct`` says, and a budget may be spread by them:
    ``allocation: responses``. With ``norms`` chains whose factors are drawn are trained with a norm
    between their factors, which take it in at the end.
    """

    RENAMED = {"layers": "overrides", "start": "init"}

    scheme: Scheme = AUTO_NAME
    ranks: Ranks | None = None
    allocation: AllocationName | None = None
    targets: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()
    overrides: dict[str, LayerPress] | None = None
    budget: Annotated[str, AfterValidator(_budget)] | None = None
    round_to: Count = 1
    init: Init | None = None
    calibrate: Count | None = None
    reconstruct: Reconstruct | None = None
    norms: bool = False

    @model_validator(mode="after")
    def _one_target(self) -> "Press":
        by_responses = self.allocation == RESPONSES
        if by_responses:
            if self.calibrate is None or self.budget is None:
                raise ValueError(f"allocation: {RESPONSES} needs a budget, and calibrate, a number")
            check_response_scheme(", ".join(parse_schemes(self.scheme)))
        check_target(
            parse_schemes(self.scheme),
            ranks=self.ranks,
            allocation=None if by_responses else self.allocation,
            budget=self.budget,
            overrides=self.overrides,
        )
        check_reconstruction(
            self.reconstruct, self.calibrate is not None, self.resolved_init, parallel=False
        )
        if self.norms and self.resolved_init == "decompose":
            raise ValueError("norms are for factors drawn at random: give init: kaiming or glorot")
        return self

    @property
    def resolved_init(self) -> Init:
        """The initialization; by default (s)cada_tucker trains from scratch, others do not."""
        joint = scheme(parse_schemes(self.scheme)[0]).joint
        return self.init or ("kaiming" if joint else "decompose")


class Quantize(Section):
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


class Rate(Section):
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
