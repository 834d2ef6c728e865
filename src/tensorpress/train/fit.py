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

    The model is moved to the device of the process. It is not wrapped, and afterwards its modules
    are in their former modes. In a program that ``accelerate launch`` or ``torchrun`` started, the
    same call trains data-parallel, with a share of the batches in every process.

    Parameters
    ----------
    model : nn.Module
        A classifier, which maps inputs to logits of shape (examples, classes).
    train_batches : iterable
        Pairs (inputs, labels) with a length, such as a DataLoader. If it, its dataset or its
        sampler has ``set_epoch``, that is called with the number of every epoch, from 0.
    config : TrainConfig
        The configuration of the run.
    validation : iterable, optional
        Pairs (inputs, labels), on which the model is evaluated in full precision after every epoch.
    teacher : nn.Module, optional
        The model to distill from; needed exactly if ``config.distill`` is set.
    weights : callable, optional
        A function of the model that returns a context for the forward and backward pass of every
        training step and for validation, such as `StraightThrough` for quantization-aware training.
    penalty : callable, optional
        A function that is called after the model in every training step, and whose result is added
        to the loss.
    checkpoint : path-like, optional
        A file that is replaced after every epoch. If it exists, the run resumes from it; on a CPU
        the final weights are then bit-identical to those of an uninterrupted run.
    on_epoch : callable, optional
        A function that is called with the metrics of every epoch, in the main process, after the
        checkpoint is written.

    Returns
    -------
    History
        The metrics of all epochs, those before a resume included.

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
    weights = weights or _null_context
    with _training_setup(model, teacher, accelerator.device):
        runner = EpochRunner(model, teacher, weights, penalty, config, accelerator)
        run_checkpoint = RunCheckpoint(
            checkpoint,
            model,
            runner.optimizer,
            runner.scaler,
            config.model_dump(mode="json")
            | {"batches per epoch": len(batches), "processes": accelerator.num_processes},
            batches.generators(),
        )
        history = run_checkpoint.resume()
        main = accelerator.is_main_process
        done = len(history.epochs)
        with ProgressReport(config.epochs, len(batches), done, silent=not main) as progress:
            for epoch in range(done, config.epochs):
                start = time.perf_counter()
                metrics = runner.run(epoch, batches, progress)
                if validation is not None:
                    with weights(model):
                        result = evaluate(model, validation, channels_last=config.channels_last)
                    metrics |= {"validation_loss": result.loss, "validation_error": result.error}
                epoch_metrics = EpochMetrics(
                    epoch=epoch + 1, **metrics, seconds=time.perf_counter() - start
                )
                history.epochs.append(epoch_metrics)
                run_checkpoint.save(history)
                progress.epoch(epoch_metrics)
                if on_epoch is not None and main:
                    on_epoch(epoch_metrics)
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
    """Train a pressed model for some epochs, by default with Adam.

    Parameters
    ----------
    model, train_batches, validation, teacher
        As for `tensorpress.train.fit`, which this calls.
    epochs, lr, **config
        The attributes of `tensorpress.train.TrainConfig`.

    Returns
    -------
    History
        The metrics of all epochs.

    Raises
    ------
    InvalidArgumentError
        As `tensorpress.train.fit` does, and if an option is unknown or out of range.

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
    """Return the accelerator of the launched processes, each of which has the whole model."""
    processes()  # before the accelerator, which would look for GPUs only
    # Without accelerate's mixed precision, which is one setting for all runs of a process and
    # remains in the model's forward.
    accelerator = Accelerator()
    whole_models = {kind for kind in DistributedType if kind.name.startswith("MULTI_")}
    if accelerator.distributed_type not in whole_models | {DistributedType.NO}:
        raise InvalidArgumentError(
            "training needs the whole model in every process (one process or data-parallel), got "
            f"{accelerator.distributed_type.value} from the launcher"
        )
    return accelerator


@contextmanager
def _training_setup(
    model: nn.Module, teacher: nn.Module | None, device: torch.device
) -> Iterator[None]:
    """Move model and teacher to the device, and set their modes for the length of the block."""
    with ExitStack() as stack:
        for network, training in ((model, True), (teacher, False)):
            if network is not None:
                network.to(device)
                stack.enter_context(training_mode(network, training))
        yield


def _null_context(_: nn.Module) -> AbstractContextManager[None]:
    return nullcontext()
