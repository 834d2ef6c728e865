"""The training loop: any model, one process or many, resumable after every epoch."""

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
    are in their former modes. In a program that ``accelerate launch`` or ``torchrun`` started, the
    same call trains data-parallel, with a share of the batches in every process.

    Parameters
    ----------
    model : nn.Module
        A model. If its forward has an argument ``labels``, it gets them, as models of Transformers
        do to compute their loss.
    train_batches : iterable
        Batches with a length, such as a DataLoader: pairs (inputs, labels), inputs being a Tensor,
        a tuple of arguments or a mapping from their names; or mappings with ``labels``; or inputs
        alone, if a teacher or a loss needs no more. If it, its dataset or its sampler has
        ``set_epoch``, that is called with the number of every epoch, from 0.
    config : TrainConfig
        The configuration of the run.
    task : Task, optional
        The loss and the metric; by default the loss that fits labels and outputs.
    validation : iterable, optional
        Batches on which the model is evaluated in full precision after every epoch.
    teacher : nn.Module, optional
        The model to distill from, by `Distillation()` unless ``config.distill`` is set.
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
        If arguments do not fit together, a batch and the model's outputs define no loss, or the
        checkpoint is of another configuration.
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
    """Train a model, pressed or dense, in place for some epochs, by default with Adam.

    The model is moved to the device of the process; its modules are in their former modes
    afterwards. In a program that ``accelerate launch`` or ``torchrun`` started, the same call
    trains data-parallel, with a share of the batches in every process.

    Parameters
    ----------
    model : nn.Module
        A model. If its forward has an argument ``labels``, it gets them, as models of Transformers
        do to compute their loss.
    train_batches : iterable
        Batches with a length, such as a DataLoader: pairs (inputs, labels), inputs being a Tensor,
        a tuple of arguments or a mapping from their names; or mappings with ``labels``; or inputs
        alone, if a teacher or a loss needs no more.
    epochs : int
        Passes over the training batches.
    lr : float
        Peak learning rate.
    loss : callable, optional
        A function of the model's outputs and the batch that returns the mean loss. By default it is
        the ``loss`` that the model returns; else the cross entropy, if labels are integers of the
        outputs' shape without the axis of classes (the last of two or three axes, else the second);
        else the mean squared error, if labels are real numbers of the outputs' shape.
    metric : callable, optional
        A function of the same arguments that returns a number, or a Tensor with a number for each
        example (or token, or pixel), averaged over the validation batches after every epoch.
    validation : iterable, optional
        Batches on which the model is evaluated in full precision after every epoch.
    teacher : nn.Module, optional
        The model to distill from, such as the dense one: scores of classes by the divergence of
        probabilities, other outputs by the mean squared error.
    checkpoint : path-like, optional
        A file that is replaced after every epoch. If it exists, the run resumes from it; on a CPU
        the final weights are then bit-identical to those of an uninterrupted run.
    on_epoch : callable, optional
        A function that is called with the metrics of every epoch, in the main process, after the
        checkpoint is written.
    **config
        The other attributes of `tensorpress.train.TrainConfig`.

    Returns
    -------
    History
        The metrics of all epochs, those before a resume included.

    Raises
    ------
    InvalidArgumentError
        If an option is unknown or out of range, arguments do not fit together, a batch and the
        model's outputs define no loss, or the checkpoint is of another configuration.
    DivergedError
        If the loss is no longer finite.
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
    """Return the configuration, which gets the defaults of distillation if there is a teacher."""
    if task.metric is not None and validation is None:
        raise InvalidArgumentError("a metric is measured on validation batches: give validation")
    if teacher is None and config.distill is not None:
        raise InvalidArgumentError("distillation (distill) needs a teacher")
    if teacher is not None and config.distill is None:
        return config.model_copy(update={"distill": Distillation()})
    return config


def _check_whole(model: nn.Module) -> None:
    """Check that a process has the whole values of a model."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise InvalidArgumentError(
                f"{name} is a DTensor: finetune trains whole models, one in each process; train a "
                "sharded model in a loop of your own, by Accelerate or by a trainer"
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


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all random streams for the length of the block, and leave them as they were before."""
    state = random_state([])
    set_seed(seed, device_specific=True)
    try:
        yield
    finally:
        restore_random_state(state, [])


def _null_context(_: nn.Module) -> AbstractContextManager[None]:
    return nullcontext()
