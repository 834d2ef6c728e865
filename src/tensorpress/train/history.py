"""The history of a training run: the metrics of every epoch."""

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tensorpress.errors import CorruptFileError


class EpochMetrics(BaseModel):
    """The metrics of one epoch.

    Attributes
    ----------
    epoch : int
        Number of the epoch, from 1.
    train_loss : float
        Mean of the training objective, measured while the model is trained.
    penalty : float or None
        Mean of the penalty in the objective, or None without a penalty.
    train_error : float or None
        Misclassified training examples (or tokens, or pixels) in percent, measured while the model
        is trained; None if labels are not classes.
    validation_loss : float or None
        Mean validation loss after the epoch (cross entropy in nats for a classifier); None without
        validation.
    validation_error : float or None
        Misclassified validation examples in percent after the epoch; None without validation or
        classes.
    validation_metric : float or None
        Mean of the metric on validation data after the epoch; None without validation or metric.
    lr : float
        Learning rate of the last step.
    seconds : float
        Wall-clock time of training and validation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    epoch: int
    train_loss: float
    penalty: float | None = None
    train_error: float | None = None
    validation_loss: float | None = None
    validation_error: float | None = None
    validation_metric: float | None = None
    lr: float
    seconds: float

    def __str__(self) -> str:
        """Return a line of text."""
        line = f"epoch {self.epoch}: train loss {self.train_loss:.4f}"
        if self.penalty is not None:
            line += f" (penalty {self.penalty:.4f})"
        if self.train_error is not None:
            line += f", train error {self.train_error:.2f} %"
        if self.validation_loss is not None:
            line += f", validation loss {self.validation_loss:.4f}"
        if self.validation_error is not None:
            line += f", validation error {self.validation_error:.2f} %"
        if self.validation_metric is not None:
            line += f", metric {self.validation_metric:.4g}"
        return f"{line}, lr {self.lr:.3g}, {self.seconds:.1f} s"


class History(BaseModel):
    """The metrics of all epochs of a run.

    Examples
    --------
    >>> metrics = EpochMetrics(epoch=1, train_loss=0.5, train_error=12.0, lr=0.1,
    ...                        seconds=3.0)
    >>> history = History(epochs=[metrics])
    >>> History.from_json(history.to_json()) == history
    True
    >>> print(history)
    epoch 1: train loss 0.5000, train error 12.00 %, lr 0.1, 3.0 s
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    epochs: list[EpochMetrics] = Field(default_factory=list)

    def __str__(self) -> str:
        """Return one line of text per epoch."""
        return "\n".join(map(str, self.epochs))

    def __repr__(self) -> str:
        """Return the number of epochs and the metrics of the last one."""
        last = f", {self.epochs[-1]}" if self.epochs else ""
        return f"<History of {len(self.epochs)} epochs{last}>"

    def to_json(self) -> str:
        """Return the history as JSON text."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> "History":
        """Return a history from the JSON text of `to_json`.

        Raises
        ------
        CorruptFileError
            If the text is not such a history.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the text"
            raise CorruptFileError(
                f"the text is not a training history: {where}: {first['msg']}"
            ) from None
