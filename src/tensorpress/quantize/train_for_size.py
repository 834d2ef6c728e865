"""Training for the sum of loss and coded bits: with noise instead of rounding, then rounded."""

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
    """Round a model in place to a file of a size, without training.

    What training for size starts from where there are trained weights: the steps that data ask
    for, and values that make up for each other's rounding errors.

    Parameters
    ----------
    model : nn.Module
        Trained, dense or pressed.
    batches : iterable
        As for `tensorpress.encode`.
    size : int
        Bytes of the file.

    Returns
    -------
    dict
        The step of every tensor that was rounded, by name: the weights, and finer ones of vectors.

    Raises
    ------
    InvalidArgumentError
        As `tensorpress.encode` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "start.tpz")
        encode(model, path, size=size, calibration=batches)
        opened = open_file(path)
        entries, stored = opened.description.tensors, opened.tensors()
    found = {entry.name: one for entry, one in zip(entries, stored, strict=True)}
    # A parameter that several layers hold is in the file once, and is one here.
    model.load_state_dict({name: one.values for name, one in found.items()}, strict=False)
    return {
        name: one.storage.step
        for name, one in found.items()
        if isinstance(one.storage, StepQuantizer)
    }


Phase = Callable[[str, RateModel, Penalty], None]
"""Trains in a phase, "noise" or "hard", with a penalty that is added to the loss of every step."""

_BITS_OF_A_KILOBYTE = 8000


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
    """Train a model in place for the sum of its loss and the bytes that its parameters take.

    Statistics of batch norms are merged into their weights and biases, and frozen. Parameters,
    steps and priors are then trained together, first with noise in place of rounding, then
    rounded. At the end the parameters are rounded for good, and ranks of zeros are dropped.

    Parameters
    ----------
    model : nn.Module
        A classifier, dense or pressed, best trained already. All parameters that require a
        gradient are quantized and pay for their bits.
    train_batches, validation, teacher
        As for `tensorpress.train.fit`.
    tradeoff : float
        Loss that a kilobyte (1,000 bytes) is worth: larger gives smaller files.
    hard, noise : TrainConfig
        How each phase is trained; without ``noise`` it is rounded from the start.
    step : float
        First step of each parameter, in units of its root mean square.
    calibration : iterable, optional
        Batches by which a trained model is rounded before: see `round_by_calibration`.
    size : int, optional
        To how many bytes; given exactly when ``calibration`` is.
    checkpoints : path, optional
        A folder for the checkpoints of both phases; an interrupted training goes on from there.

    Returns
    -------
    dict
        The quantizer of every parameter trained, for `tensorpress.save`.

    Raises
    ------
    InvalidArgumentError
        For a tradeoff that is not positive, and as `RateModel` and `tensorpress.train.fit` do.

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

    def train(phase: str, rated: RateModel, penalty: Penalty) -> None:
        config = configs[phase]
        if config is not None:
            fit(
                rated,
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
    return in_phases(model, train, tradeoff=tradeoff, step=step, steps=steps)


def in_phases(
    model: nn.Module,
    train: Phase,
    *,
    tradeoff: float,
    step: float,
    steps: Mapping[str, float],
) -> dict[str, StepQuantizer]:
    """Carry `train_for_size` out with a training of the caller's."""
    if not tradeoff > 0:
        raise InvalidArgumentError(f"the tradeoff must be positive, not {tradeoff}")
    merge_statistics(model)
    rated = RateModel(model, step=step, steps=steps)
    for phase in ("noise", "hard"):
        rated.hard = phase == "hard"
        train(phase, rated, lambda: rated.bits * (tradeoff / _BITS_OF_A_KILOBYTE))
    quantizers = rated.round_()
    drop_zero_ranks(model)
    return quantizers
