"""The sections of recipes, checked by pydantic; every error names the key."""

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
from tensorpress.models.names import parse_name
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


def _check_schemes(schemes: Schemes) -> Schemes:
    parse_schemes(schemes)
    return schemes


def _expect(expected: str) -> WrapValidator:
    """Return a validator that reports one error for all members of a union."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {expected} (got {SHORT.repr(value)})") from None

    return WrapValidator(check)


def _check_rank_name(name: str) -> str:
    parse_rank_rule(name)
    return name


def _check_allocation_name(name: str) -> str:
    if name != RESPONSES:
        check_allocation(name)
    return name


def _check_budget(text: str) -> str:
    parse_budget(text)
    return text


def _check_network_name(name: str) -> str:
    """Check the name of a network in the zoo, or only the form of any other name."""
    return name if parse_name(name).origin else network(name).name


def _check_augmentation(name: str) -> str:
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    return name


Count = Annotated[int, Field(ge=1)]
NetworkName = Annotated[str, AfterValidator(_check_network_name)]
Scheme = Annotated[
    Schemes, _expect("a scheme, auto, or a list of schemes"), AfterValidator(_check_schemes)
]
Modes = Annotated[
    tuple[Count, ...] | Literal["original"],
    _expect("a list of positive sizes, or original"),
]
Rank = Annotated[int, Field(ge=1, strict=True)]
RankName = Annotated[str, AfterValidator(_check_rank_name)]
AllocationName = Annotated[str, AfterValidator(_check_allocation_name)]
Fraction = Annotated[float, Field(gt=0, le=1, strict=True)]
_RANKS = f"a list of positive numbers, one for all, a fraction, {' or '.join(NAMES)}"
AnyRanks = tuple[Rank, ...] | Rank | Fraction | RankName
LayerRanks = Annotated[AnyRanks, _expect(_RANKS)]
Ranks = Annotated[AnyRanks, _expect(f"{_RANKS} (a rule that divides a budget is the allocation)")]


class Section(BaseModel):
    """A part of a recipe, which is immutable and allows no unknown keys."""

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Former names of keys and their present names; errors mention both."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """The images, how many training images are for validation, and augmentation.

    ``name`` is the name of a dataset; ``source`` is a path, which may be relative to the data
    folder, or ``package.module:function``; see `tensorpress.data.open_source`. With ``variants``,
    the same augmented images are repeated after that number of epochs, with the teacher's stored
    outputs.
    """

    name: str | None = None
    source: str | None = None
    root: Path | None = None
    validation: Annotated[int, Field(ge=0)]
    augment: Annotated[str, AfterValidator(_check_augmentation)] | None = None
    variants: Count | None = None
    batch_size: Count = 256

    @model_validator(mode="after")
    def _check_source(self) -> "Data":
        if (self.name is None) == (self.source is None):
            raise ValueError(
                "needs either name (a dataset) or source (a path, or package.module:function)"
            )
        return self

    @property
    def origin(self) -> str:
        """The name or the source."""
        return self.name or self.source or ""


class Teacher(Section):
    """A trained network to distill from instead of the dense one, such as a larger network.

    ``weights`` is a file, as for the dense network.
    """

    network: NetworkName
    weights: Path


class LayerPress(Section):
    """The settings of one layer, or of all layers that match a pattern.

    Additional keys are options of the scheme, such as ``modes`` of (s)cada_tucker. ``ranks``
    defaults to the ranks for all layers.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    scheme: Annotated[str, AfterValidator(_check_schemes)] | None = None
    modes: Modes | None = None
    ranks: LayerRanks | None = None

    @model_validator(mode="after")
    def _check_options(self) -> "LayerPress":
        schemes = SCHEMES.values() if self.scheme is None else [scheme(self.scheme)]
        options = {name for one in schemes for name in one.option_names}
        for key in self.model_extra or {}:
            if key not in options:
                raise unknown_name("key", key, {*type(self).model_fields, *options})
        return self


class Press(Section):
    """The arguments of `tensorpress.plan` and `tensorpress.press`.

    See `tensorpress.plan` for possible combinations. With ``calibrate``, a number of training
    images, factors are fitted to responses with the method ``reconstruct``, and ``allocation:
    responses`` divides a budget by them. With ``norms``, chains of random factors are trained with
    norms between the factors, which are merged into the factors at the end.
    """

    RENAMED = {"layers": "overrides", "start": "init"}

    scheme: Scheme = AUTO_NAME
    ranks: Ranks | None = None
    allocation: AllocationName | None = None
    targets: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()
    overrides: dict[str, LayerPress] | None = None
    budget: Annotated[str, AfterValidator(_check_budget)] | None = None
    round_to: Count = 1
    init: Init | None = None
    calibrate: Count | None = None
    reconstruct: Reconstruct | None = None
    norms: bool = False

    @model_validator(mode="after")
    def _check_target(self) -> "Press":
        by_responses = self.allocation == RESPONSES
        if by_responses:
            if self.calibrate is None or self.budget is None:
                raise ValueError(f"allocation: {RESPONSES} needs a budget and calibrate (a number)")
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
            raise ValueError("norms needs random factors: set init: kaiming or glorot")
        return self

    @property
    def resolved_init(self) -> Init:
        """The initialization; by default only (s)cada_tucker trains from scratch."""
        joint = scheme(parse_schemes(self.scheme)[0]).joint
        return self.init or ("kaiming" if joint else "decompose")


class Quantize(Section):
    """The quantizer and coder of the file, and training with quantized weights.

    Either ``levels`` and ``bound``, Q and b of eq. 13 for all parameters, or ``step``, relative to
    each parameter's root mean square. ``norms`` is the precision in which parameters of
    normalization layers and floating-point buffers are stored.
    """

    levels: Count | None = None
    bound: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    step: Annotated[float, Field(gt=0, le=4)] | None = None
    rounding: Rounding = "nearest"
    coder: Coder = "range"
    norms: Literal["half", "float32"] = "half"
    finetune: TrainConfig | None = None

    @model_validator(mode="after")
    def _check_quantizer(self) -> "Quantize":
        complete = self.levels is not None and self.bound is not None
        partial = self.levels is not None or self.bound is not None
        if partial == (self.step is not None) or partial != complete:
            raise ValueError("needs either levels and bound, or step")
        if self.levels is not None and self.bound is not None:
            UniformQuantizer(self.levels, self.bound)
        return self


class Rate(Section):
    """Training of the network for loss + ``tradeoff`` · kilobytes of parameters.

    The phase ``noise`` trains with noise instead of rounding, and the phase ``hard`` with rounding.
    ``step`` is the initial quantization step of each parameter, relative to its root mean square.
    With ``calibrate``, a size in bytes, weights are first rounded to a file of that size, by
    calibration on training images.
    """

    tradeoff: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    step: Annotated[float, Field(gt=0, le=4)] = 0.125
    calibrate: Count | None = None
    noise: TrainConfig | None = None
    hard: TrainConfig
