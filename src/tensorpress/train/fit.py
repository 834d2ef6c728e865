"""The training loop: any model, in one process or many, resumable after every epoch."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import nn
from torch.distributed.tensor import DTensor

from tensorpress.errors import InvalidArgumentError
from tensorpress.train.batches import Batch, TrainBatches
from tensorpress.train.checkpoint import RunCheckpoint, random_state, restore_random_state
from tensorpress.train.config import Distillation, TrainConfig, train_config
from tensorpress.train.epoch import EpochRunner, Penalty, WeightContext
from tensorpress.train.evaluate import evaluate, training_mode
from tensorpress.train.history import EpochMetrics, History
from tensorpress.train.processes import processes
from tensorpress.train.progress import ProgressReport
from tensorpress.train.task import Loss, Metric, Task


def fit(
    model: nn.Module,
    train_batches: Iterable[Batch],
    config: TrainConfig,
    *,
    task: Task | None = None,
    validation: Iterable[Batch] | None = None,
    teacher: nn.Module | None = None,
    weights: WeightContext | None = None,
    penalty: Penalty | None = None,
    checkpoint: Path | str | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
) -> History:
    """Train a model in place.

    The model is moved to the device of the process. It is not wrapped, and afterwards its modules
    are back in their previous modes. In a program started by ``accelerate launch`` or ``torchrun``,
    the same call trains data-parallel, with a part of the batches in every process.

    Parameters
    ----------
    model : nn.Module
        A model. If its ``forward`` has an argument ``labels``, it gets the labels, from which
        Transformers models compute their loss.
    train_batches : iterable
        Batches with a length, such as a DataLoader. A batch is a pair (inputs, labels), where
        inputs is a Tensor, a tuple of arguments or a mapping from argument names; a mapping with
        ``labels``; or only inputs, if a teacher or the loss needs no labels. If the loader, its
        dataset or its sampler has ``set_epoch``, it is called with the number of every epoch, from
        0.
    config : TrainConfig
        The configuration of the run.
    task : Task, optional
        Loss and metric; by default the loss that fits the labels and outputs.
    validation : iterable, optional
        Batches on which to evaluate the model after every epoch, in full precision.
    teacher : nn.Module, optional
        The model to distill from, with ``config.distill`` or else `Distillation()`.
    weights : callable, optional
        Function of the model that returns a context for the forward and backward pass of every
        training step and for validation, such as `StraightThrough` for quantization-aware training.
    penalty : callable, optional
        Function that is called after the model in every training step; its result is added to the
        loss.
    checkpoint : path-like, optional
        File that is replaced after every epoch. If it exists, the run resumes from it; on a CPU the
        final weights are then bit-identical to those of an uninterrupted run.
    on_epoch : callable, optional
        Function that the main process calls with the metrics of every epoch, after the checkpoint
        is written.

    Returns
    -------
    History
        The metrics of all epochs, including those before the run was resumed.

    Raises
    ------
    InvalidArgumentError
        If arguments do not fit together, labels and outputs define no loss, or the checkpoint has
        another configuration.
    DivergedError
        If the loss becomes NaN or infinite.
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
    task = task or Task()
    config = _check_options(config, task, validation, teacher)
    accelerator = _data_parallel_accelerator()
    weights = weights or _null_context
    _check_whole(model)
    with _seeded(config.seed), _training_setup(model, teacher, accelerator.device):
        batches = TrainBatches(train_batches)
        runner = EpochRunner(model, task, teacher, weights, penalty, config, accelerator)
        run_checkpoint = RunCheckpoint(
            checkpoint,
            model,
            runner.optimizer,
            runner.scaler,
            config.model_dump(mode="json")
            | {"batches per epoch": len(batches), "processes": accelerator.num_processes}
            | {"loss": task.loss_name},
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
                        metrics |= _validate(model, validation, task, config)
                seconds = time.perf_counter() - start
                epoch_metrics = EpochMetrics.model_validate(
                    {"epoch": epoch + 1, **metrics, "seconds": seconds}
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
    loss: Loss | None = None,
    metric: Metric | None = None,
    validation: Iterable[Batch] | None = None,
    teacher: nn.Module | None = None,
    checkpoint: Path | str | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    **config: Any,
) -> History:
    """Train a pressed or dense model in place, by default with Adam.

    The model is moved to the device of the process; afterwards its modules are back in their
    previous modes. In a program started by ``accelerate launch`` or ``torchrun``, the same call
    trains data-parallel, with a part of the batches in every process.

    Parameters
    ----------
    model : nn.Module
        A model. If its ``forward`` has an argument ``labels``, it gets the labels, from which
        Transformers models compute their loss.
    train_batches : iterable
        Batches with a length, such as a DataLoader. A batch is a pair (inputs, labels), where
        inputs is a Tensor, a tuple of arguments or a mapping from argument names; a mapping with
        ``labels``; or only inputs, if a teacher or the loss needs no labels.
    epochs : int
        Passes over the training batches.
    lr : float
        Peak learning rate.
    loss : callable, optional
        Function of the model's outputs and the batch that returns the mean loss. By default it is
        the ``loss`` that the model returns, if any. Otherwise it is the cross entropy if labels are
        integers with the outputs' shape less the class axis (the last of two or three axes, else
        the second), or the mean squared error if labels are real numbers with the outputs' shape.
    metric : callable, optional
        Function of the same arguments that returns a number, or a Tensor with a number for each
        example (or token, or pixel). It is averaged over the validation batches after every epoch.
    validation : iterable, optional
        Batches on which to evaluate the model after every epoch, in full precision.
    teacher : nn.Module, optional
        The model to distill from, such as the dense model. The loss is the divergence of class
        probabilities, or the mean squared error of other outputs.
    checkpoint : path-like, optional
        File that is replaced after every epoch. If it exists, the run resumes from it; on a CPU the
        final weights are then bit-identical to those of an uninterrupted run.
    on_epoch : callable, optional
        Function that the main process calls with the metrics of every epoch, after the checkpoint
        is written.
    **config
        Other attributes of `tensorpress.train.TrainConfig`.

    Returns
    -------
    History
        The metrics of all epochs, including those before the run was resumed.

    Raises
    ------
    InvalidArgumentError
        If an option is unknown or out of range, arguments do not fit together, labels and outputs
        define no loss, or the checkpoint has another configuration.
    DivergedError
        If the loss becomes NaN or infinite.
    CorruptFileError
        If the checkpoint is damaged.
    ModelMismatchError
        If the checkpoint is of another model.

    Examples
    --------
    >>> import torch
    >>> batches = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))]
    >>> len(finetune(nn.Linear(3, 2), batches, epochs=2, schedule="cosine").epochs)
    2
    >>> def absolute_error(outputs, batch):
    ...     inputs, labels = batch
    ...     return (outputs - labels).abs().mean()
    >>> batches = [(torch.ones(4, 3), torch.ones(4, 2))]
    >>> history = finetune(nn.Linear(3, 2), batches, loss=absolute_error, lr=0.1)
    >>> history.epochs[-1].train_loss < history.epochs[0].train_loss
    True
    """
    return fit(
        model,
        train_batches,
        train_config(epochs=epochs, lr=lr, **config),
        task=Task(loss, metric),
        validation=validation,
        teacher=teacher,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )


def _check_options(
    config: TrainConfig, task: Task, validation: object, teacher: nn.Module | None
) -> TrainConfig:
    """Return the configuration, with the defaults for distillation if there is a teacher."""
    if task.metric is not None and validation is None:
        raise InvalidArgumentError("a metric needs validation batches: pass validation=")
    if teacher is None and config.distill is not None:
        raise InvalidArgumentError("distill needs a teacher: pass teacher=")
    if teacher is not None and config.distill is None:
        return config.model_copy(update={"distill": Distillation()})
    return config


def _check_whole(model: nn.Module) -> None:
    """Check that this process has the whole model."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise InvalidArgumentError(
                f"{name} is a DTensor, but finetune needs the whole model in every process: train "
                "a sharded model with Accelerate or in your own training loop"
            )


def _validate(
    model: nn.Module, batches: Iterable[Batch], task: Task, config: TrainConfig
) -> dict[str, float | None]:
    result = evaluate(model, batches, task=task, channels_last=config.channels_last)
    return {
        "validation_loss": result.loss,
        "validation_error": result.error,
        "validation_metric": result.metric,
    }


def _data_parallel_accelerator() -> Accelerator:
    """Return the accelerator of the launched processes, which must be data-parallel."""
    processes()  # first, because Accelerator would only look for GPUs
    # Without accelerate's mixed precision, which is global to the process and would permanently
    # wrap the model's forward.
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
    """Move model and teacher to the device, and set their modes in a block."""
    with ExitStack() as stack:
        for network, training in ((model, True), (teacher, False)):
            if network is not None:
                network.to(device)
                stack.enter_context(training_mode(network, training))
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all random generators in a block, and restore their states at the end."""
    state = random_state([])
    set_seed(seed, device_specific=True)
    try:
        yield
    finally:
        restore_random_state(state, [])


def _null_context(_: nn.Module) -> AbstractContextManager[None]:
    return nullcontext()
