"""Trains for the sum of loss and coded bits: first with noise, then with rounding."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import nn

from tensorpress.calibrate.batches import CalibrationBatch
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.codec.tpz_file import open_file
from tensorpress.errors import InvalidArgumentError
from tensorpress.press.zero_ranks import drop_zero_ranks
from tensorpress.quantize.encode import encode
from tensorpress.quantize.fold_batch_norm import merge_statistics
from tensorpress.quantize.noisy_model import RateModel
from tensorpress.train import TrainConfig, fit
from tensorpress.train.batches import Batch
from tensorpress.train.epoch import Penalty


def round_by_calibration(
    model: nn.Module, batches: Iterable[CalibrationBatch], size: int
) -> dict[str, float]:
    """Round a model in place to the values that `tensorpress.encode` would store.

    This starts training for size from a trained model: with steps from calibration data, and values
    that compensate each other's rounding errors.

    Parameters
    ----------
    model : nn.Module
        A trained model, dense or pressed.
    batches : iterable
        Calibration data, as for `tensorpress.encode`.
    size : int
        Size of the file in bytes.

    Returns
    -------
    dict of str to float
        The step of every rounded tensor by name.

    Raises
    ------
    InvalidArgumentError
        As `tensorpress.encode` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "start.tpz")
        encode(model, path, size=size, calibration=batches)
        opened = open_file(path)
        names = [entry.name for entry in opened.description.tensors]
        tensors = dict(zip(names, opened.tensors(), strict=True))
    # Shared parameters are in the file once, hence strict=False.
    model.load_state_dict({name: tensor.values for name, tensor in tensors.items()}, strict=False)
    return {
        name: tensor.storage.step
        for name, tensor in tensors.items()
        if isinstance(tensor.storage, StepQuantizer)
    }


Phase = Callable[[str, RateModel, Penalty], None]
"""Trains a phase, "noise" or "hard", with a penalty to add to the loss of every step."""

_BITS_PER_KILOBYTE = 8000


def train_for_size(
    model: nn.Module,
    train_batches: Iterable[Batch],
    *,
    tradeoff: float,
    hard: TrainConfig,
    noise: TrainConfig | None = None,
    step: float = 0.125,
    calibration: Iterable[CalibrationBatch] | None = None,
    size: int | None = None,
    validation: Iterable[Batch] | None = None,
    teacher: nn.Module | None = None,
    checkpoints: Path | str | None = None,
) -> dict[str, StepQuantizer]:
    """Train a model in place for the sum of its loss and the bytes of its parameters.

    Statistics of batch norms are merged into their weights and biases, and frozen. Then parameters,
    steps and priors are trained together, first with noise instead of rounding, then with rounding.
    At the end the parameters are rounded, and ranks of zeros are dropped.

    Parameters
    ----------
    model : nn.Module
        A model, dense or pressed, preferably trained already. All parameters that require a
        gradient are quantized, and their bits are part of the objective.
    train_batches, validation, teacher
        As for `tensorpress.train.fit`.
    tradeoff : float
        The loss that a kilobyte (1,000 bytes) is worth: larger values give smaller files.
    hard, noise : TrainConfig
        The training of the phases with rounding and with noise; without ``noise``, parameters are
        rounded from the start.
    step : float
        Initial step of each parameter, in units of its root mean square.
    calibration : iterable, optional
        Batches for rounding a trained model first; see `round_by_calibration`.
    size : int, optional
        Size of the rounded model's file in bytes; needed with ``calibration``.
    checkpoints : path, optional
        A folder for the checkpoints of both phases, from which interrupted training resumes.

    Returns
    -------
    dict of str to StepQuantizer
        The quantizer of every trained parameter, for `tensorpress.save`.

    Raises
    ------
    InvalidArgumentError
        If the tradeoff is not positive, or `RateModel` or `tensorpress.train.fit` raises it.

    Examples
    --------
    >>> import torch
    >>> model = nn.Linear(3, 2)
    >>> batches = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))]
    >>> quantizers = train_for_size(
    ...     model, batches, tradeoff=0.1, hard=TrainConfig(epochs=2, lr=0.01)
    ... )
    >>> torch.equal(quantizers["bias"](model.bias), model.bias)
    True
    """
    if (calibration is None) != (size is None):
        raise InvalidArgumentError("give both calibration and size, or neither")
    configs = {"noise": noise, "hard": hard}

    def train(phase: str, rate_model: RateModel, penalty: Penalty) -> None:
        config = configs[phase]
        if config is not None:
            fit(
                rate_model,
                train_batches,
                config,
                validation=validation,
                teacher=None if config.distill is None else teacher,
                penalty=penalty,
                checkpoint=None if checkpoints is None else Path(checkpoints) / f"{phase}.pt",
            )

    steps = {}
    if calibration is not None and size is not None:
        steps = round_by_calibration(model, calibration, size)
    return train_in_phases(model, train, tradeoff=tradeoff, step=step, steps=steps)


def train_in_phases(
    model: nn.Module,
    train: Phase,
    *,
    tradeoff: float,
    step: float,
    steps: Mapping[str, float],
) -> dict[str, StepQuantizer]:
    """Train a model for size with a training function of the caller.

    Parameters
    ----------
    model : nn.Module
        The model, trained in place.
    train : callable
        Trains a phase; see `Phase`.
    tradeoff : float
        The loss that a kilobyte (1,000 bytes) is worth.
    step : float
        Initial step of each parameter, in units of its root mean square.
    steps : mapping of str to float
        Initial steps of some parameters by name, in units of their values.

    Returns
    -------
    dict of str to StepQuantizer
        The quantizer of every trained parameter.

    Raises
    ------
    InvalidArgumentError
        If the tradeoff is not positive, or `RateModel` raises it.
    """
    if not tradeoff > 0:
        raise InvalidArgumentError(f"the tradeoff must be positive, not {tradeoff}")
    merge_statistics(model)
    rate_model = RateModel(model, step=step, steps=steps)
    for phase in ("noise", "hard"):
        rate_model.hard = phase == "hard"
        train(phase, rate_model, lambda: rate_model.bits * (tradeoff / _BITS_PER_KILOBYTE))
    quantizers = rate_model.round_()
    drop_zero_ranks(model)
    return quantizers
