"""The training loop: any classifier, one process or many, resumable after every epoch."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.train.batches import Batch, TrainBatches
from tensorpress.train.checkpoint import RunCheckpoint
from tensorpress.train.config import TrainConfig, train_config
from tensorpress.train.epoch import EpochRunner, Penalty, WeightContext
from tensorpress.train.evaluate import evaluate, training_mode
from tensorpress.train.history import EpochMetrics, History
from tensorpress.train.processes import processes
from tensorpress.train.progress import ProgressReport


def fit(
    model: nn.Module,
    train_batches: Iterable[Batch],
    config: TrainConfig,
    *,
    validation: Iterable[Batch] | None = None,
    teacher: nn.Module | None = None,
    weights: WeightContext | None = None,
    penalty: Penalty | None = None,
    checkpoint: Path | str | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
) -> History:
    """Train a classifier in place.

    The model is moved to the device of the process and otherwise left as it was given: not
    wrapped, its modules in their former modes.
    Started by ``accelerate launch`` or ``torchrun``, the same call trains data-parallel, every
    process taking its share of the batches.

    Parameters
    ----------
    model
        Maps inputs to logits of shape (N, classes).
    train_batches
        Iterable of (inputs, labels) with a length, such as a DataLoader. If it, its dataset or
        its sampler has ``set_epoch``, that is called with the number of every epoch, from 0.
    config
        The configuration of the run.
    validation
        Iterable of (inputs, labels), evaluated in full precision after every epoch.
    teacher
        The model to distill from, given exactly when ``config.distill`` is set.
    weights
        Makes a context for every training step's forward and backward pass and for validation,
        such as `StraightThrough` does for quantization-aware training.
    penalty
        Called after the model in every training step, and its result added to the loss.
    checkpoint
        File that is replaced after every epoch. If it exists the run goes on from there; on a
        CPU the final weights are bit-identical to those of an uninterrupted run.
    on_epoch
        Called with the metrics of every finished epoch, in the main process, after the
        checkpoint is written.

    Returns
    -------
    History
        Of all epochs, those before a resume included.

    Raises
    ------
    InvalidArgumentError
        If arguments do not fit together, a batch or the model's output is not as described, or
        the checkpoint is of another configuration.
    DivergedError
        If the loss is no longer finite.
    CorruptFileError
        If the checkpoint is damaged.
    ModelMismatchError
        If the checkpoint is of another model.

    Examples
    --------
    >>> import torch
    >>> inputs = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    >>> batches = [(inputs, (inputs[:, 0] > 0).long())]
    >>> history = fit(nn.Linear(2, 2), batches, TrainConfig(epochs=40, lr=0.1))
    >>> history.epochs[-1].train_error < 10
    True
    """
    if (teacher is None) != (config.distill is None):
        raise InvalidArgumentError(
            "distillation needs both a teacher and config.distill, got only "
            + ("config.distill" if teacher is None else "a teacher")
        )
    accelerator = _data_parallel_accelerator()
    set_seed(config.seed, device_specific=True)
    batches = TrainBatches(train_batches)
    weights = weights or _as_they_are
    with _prepared(model, teacher, accelerator.device):
        runner = EpochRunner(model, teacher, weights, penalty, config, accelerator)
        saved = RunCheckpoint(
            checkpoint,
            model,
            runner.optimizer,
            runner.scaler,
            config.model_dump(mode="json")
            | {"batches per epoch": len(batches), "processes": accelerator.num_processes},
            batches.generators(),
        )
        history = saved.resume()
        main = accelerator.is_main_process
        done = len(history.epochs)
        with ProgressReport(config.epochs, len(batches), done, silent=not main) as progress:
            for epoch in range(done, config.epochs):
                start = time.perf_counter()
                metrics = runner.run(epoch, batches, progress)
                if validation is not None:
                    with weights(model):
                        after = evaluate(model, validation, channels_last=config.channels_last)
                    metrics |= {"validation_loss": after.loss, "validation_error": after.error}
                finished = EpochMetrics(
                    epoch=epoch + 1, **metrics, seconds=time.perf_counter() - start
                )
                history.epochs.append(finished)
                saved.save(history)
                progress.epoch(finished)
                if on_epoch is not None and main:
                    on_epoch(finished)
    return history


def finetune(
    model: nn.Module,
    train_batches: Iterable[Batch],
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    validation: Iterable[Batch] | None = None,
    teacher: nn.Module | None = None,
    **config: Any,
) -> History:
    """Train a pressed model for some epochs, with Adam unless told otherwise.

    A convenience over `fit`, for everyday use.

    Parameters
    ----------
    model, train_batches, validation, teacher
        As for `fit`.
    epochs, lr, **config
        The attributes of `TrainConfig`.

    Raises
    ------
    InvalidArgumentError
        As `fit` does, and for an unknown or unusable option.

    Examples
    --------
    >>> import torch
    >>> batches = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))]
    >>> len(finetune(nn.Linear(3, 2), batches, epochs=2, schedule="cosine").epochs)
    2
    """
    options = train_config(epochs=epochs, lr=lr, **config)
    return fit(model, train_batches, options, validation=validation, teacher=teacher)


def _data_parallel_accelerator() -> Accelerator:
    processes()  # joined before the accelerator, which would look for GPUs only
    # Mixed precision is our own: accelerate's is one setting for all runs of a process, and it
    # stays behind in the model's forward.
    accelerator = Accelerator()
    whole_models = {kind for kind in DistributedType if kind.name.startswith("MULTI_")}
    if accelerator.distributed_type not in whole_models | {DistributedType.NO}:
        raise InvalidArgumentError(
            "training needs the whole model in every process (one process or data-parallel), got "
            f"{accelerator.distributed_type.value} from the launcher"
        )
    return accelerator


@contextmanager
def _prepared(model: nn.Module, teacher: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Put model and teacher on the device, and in their modes for the length of a run."""
    with ExitStack() as stack:
        for network, training in ((model, True), (teacher, False)):
            if network is not None:
                network.to(device)
                stack.enter_context(training_mode(network, training))
        yield


def _as_they_are(_: nn.Module) -> AbstractContextManager[None]:
    return nullcontext()
