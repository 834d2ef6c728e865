"""The configuration of a training run, as one immutable, serializable object."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tensorpress.errors import InvalidArgumentError, unknown_name

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class Distillation(BaseModel):
    """Weight and temperature of knowledge distillation.

    Attributes
    ----------
    weight : float
        Weight of the teacher's term in the loss, in [0, 1]; the term of the labels gets the rest.
    temperature : float
        Temperature of both softmax functions, > 0. Higher values give the teacher's probabilities
        of wrong classes more weight.

    See Also
    --------
    tensorpress.train.distillation.distillation_loss : The loss.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: Fraction = 0.9
    temperature: Positive = 4.0


class TrainConfig(BaseModel):
    """All settings of a training run, besides model and data.

    Attributes
    ----------
    epochs : int
        Passes over the training batches, at least 1.
    lr : float
        Peak learning rate, > 0.
    bias_lr : float
        Learning rate of biases, as a multiple of ``lr``. Factors with small values need large
        rates, which would push biases to where a ReLU is always zero.
    optimizer : {"adam", "adamw", "sgd"}
        The optimizer.
    weight_decay : float
        Weight decay of parameters with two or more axes, not of biases and norms.
    momentum : float
        Momentum of ``"sgd"``, in [0, 1); other optimizers ignore it.
    schedule : {"constant", "cosine", "step"}
        Course of the learning rate; ``"cosine"`` ends at zero.
    warmup_epochs : float
        Length of the linear warm-up in epochs, which may be fractional.
    step_epochs : int or None
        Number of epochs between steps of the schedule ``"step"``.
    step_factor : float
        Factor of the learning rate at each step of the schedule ``"step"``.
    precision : {"no", "bf16", "fp16"}
        Dtype of automatic mixed precision; ``"no"`` keeps the dtype of the model.
    clip_norm : float or None
        Largest Euclidean norm of the whole gradient, or None for no limit.
    distill : Distillation or None
        Weight and temperature of knowledge distillation.
    label_smoothing : float
        Fraction of the target that is spread evenly over all classes, in [0, 1).
    channels_last : bool
        Whether to pass images in the channels-last memory format, which is often faster.
        Convolutions follow the format of their input, even if their weight is rebuilt from factors.
    seed : int
        Seed of all random numbers of the run.

    Examples
    --------
    >>> config = TrainConfig(epochs=20, lr=0.1, optimizer="sgd", schedule="cosine")
    >>> TrainConfig.model_validate_json(config.model_dump_json()) == config
    True
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Annotated[int, Field(ge=1)]
    lr: Positive
    bias_lr: Positive = 1.0
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: NonNegative = 0.0
    momentum: BelowOne = 0.9
    schedule: Literal["constant", "cosine", "step"] = "constant"
    warmup_epochs: NonNegative = 0.0
    step_epochs: Annotated[int, Field(ge=1)] | None = None
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    precision: Literal["no", "bf16", "fp16"] = "no"
    clip_norm: Positive | None = None
    distill: Distillation | None = None
    label_smoothing: BelowOne = 0.0
    channels_last: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _check_schedule(self) -> "TrainConfig":
        if self.schedule == "step" and self.step_epochs is None:
            raise ValueError(
                "schedule 'step' needs step_epochs, the number of epochs between steps"
            )
        if self.schedule != "step" and self.step_epochs is not None:
            raise ValueError(
                f"step_epochs applies to schedule 'step' only, not to {self.schedule!r}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be below epochs ({self.epochs}), got {self.warmup_epochs:g}"
            )
        return self


def train_config(**options: Any) -> TrainConfig:
    """Return a `TrainConfig` with these options.

    Raises
    ------
    InvalidArgumentError
        If an option is unknown, missing or out of range; the message names it.

    Examples
    --------
    >>> train_config(epochs=3, lr=0.01).optimizer
    'adam'
    >>> train_config(epochs=3, lr=-1.0)
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: training option lr: Input should be greater than 0 \
(got -1.0)
    """
    for name in options:
        if name not in TrainConfig.model_fields:
            raise unknown_name("training option", name, TrainConfig.model_fields)
    try:
        return TrainConfig(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
    if not where:
        raise InvalidArgumentError(f"training options: {message}")
    got = f" (got {first['input']!r})" if first["type"] != "missing" else ""
    raise InvalidArgumentError(f"training option {where}: {message}{got}")
