"""The inner loop of `fit`: one pass over the training batches."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tensorpress.errors import DivergedError, InvalidArgumentError
from tensorpress.train.batches import TrainBatches
from tensorpress.train.config import TrainConfig
from tensorpress.train.distillation import mix_losses, teacher_loss
from tensorpress.train.optimizers import build_optimizer, learning_rate, set_learning_rate
from tensorpress.train.progress import ProgressReport
from tensorpress.train.task import Outcome, Task, TaskBatch

WeightContext = Callable[[nn.Module], AbstractContextManager[None]]
Penalty = Callable[[], Tensor]

# On a GPU, reading a loss waits until all queued kernels have run.
_STEPS_BETWEEN_READS = 20


@dataclass
class _EpochSums:
    """Sums over the examples of an epoch; those of the last steps are still on the device."""

    loss: float = 0.0
    penalty: float = 0.0
    wrong: float = 0.0
    examples: float = 0.0
    unread: list[Tensor] = field(default_factory=list)


class EpochRunner:
    """Runs the epochs of a training run.

    Parameters
    ----------
    model : nn.Module
        The model on its device, in training mode.
    task : Task
        The task to train for.
    teacher : nn.Module or None
        The teacher on the same device, in evaluation mode.
    weights : callable
        Function that returns a context for the forward and backward pass of a step.
    penalty : callable or None
        Function that returns a term to add to the loss of a step.
    config : TrainConfig
        The configuration of the run.
    accelerator : Accelerator
        The processes of the run.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        teacher: nn.Module | None,
        weights: WeightContext,
        penalty: Penalty | None,
        config: TrainConfig,
        accelerator: Accelerator,
    ) -> None:
        self.optimizer = build_optimizer(model, config)
        device = accelerator.device
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._model, self._teacher, self._weights = model, teacher, weights
        self._task, self._penalty = task, penalty
        self._config, self._accelerator = config, accelerator
        self._network = model
        if accelerator.num_processes > 1:
            device_ids = None if device.type == "cpu" else [device.index]
            self._network = DistributedDataParallel(model, device_ids=device_ids)

    def run(
        self, epoch: int, batches: TrainBatches, progress: ProgressReport
    ) -> dict[str, float | None]:
        """Train for one epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 0.
        batches : TrainBatches
            The batches of this process.
        progress : ProgressReport
            The report of the run's progress.

        Returns
        -------
        dict of str to float or None
            ``train_loss``, the mean objective; ``penalty``, the mean penalty, if there is one;
            ``train_error`` in percent, or None if labels are not classes, over the examples of all
            processes; and ``lr``, the learning rate of the last step.

        Raises
        ------
        DivergedError
            If a loss is not finite; the message names the epoch, the step and the learning rate.
        InvalidArgumentError
            If the batches have no examples.
        """
        config, steps = self._config, len(batches)
        device = self._accelerator.device
        interval = 1 if device.type == "cpu" else _STEPS_BETWEEN_READS
        sums, step, lr = _EpochSums(), 0, config.lr
        for step, batch in enumerate(batches.epoch(epoch), start=1):
            task_batch = self._task.read(batch, device, config.channels_last)
            lr = learning_rate(config, epoch * steps + step - 1, steps)
            set_learning_rate(self.optimizer, lr)
            sums.unread.append(self._step(task_batch))
            if step % interval == 0 or step == steps:
                self._read(sums, epoch, step, steps)
                progress.step(epoch, step, sums.loss / sums.examples)
        self._read(sums, epoch, step, steps)
        self.optimizer.zero_grad(set_to_none=True)
        if not sums.examples:
            raise InvalidArgumentError(f"train_batches has no examples in epoch {epoch + 1}")
        penalty = {} if self._penalty is None else {"penalty": sums.penalty / sums.examples}
        return penalty | {
            "train_loss": sums.loss / sums.examples,
            "train_error": None if math.isnan(sums.wrong) else 100 * sums.wrong / sums.examples,
            "lr": lr,
        }

    def _step(self, batch: TaskBatch) -> Tensor:
        """Take one optimizer step, and return sums of loss, errors, examples and penalty."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._weights(self._model):
            with self._autocast():
                outputs = batch.run(self._model, self._network)
            outcome = self._task.outcome(outputs, batch, self._config.label_smoothing)
            loss = self._objective(outputs, outcome, batch)
            penalty = torch.zeros_like(loss) if self._penalty is None else self._penalty()
            loss = loss + penalty
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self._config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        sums = replace(outcome, loss=loss).sums()
        return torch.cat([sums, (penalty.detach() * outcome.count).to(sums.dtype)[None]])

    def _objective(self, outputs: Any, outcome: Outcome, batch: TaskBatch) -> Tensor:
        """Return the loss of the labels, mixed with the teacher's loss if there is a teacher."""
        distill = self._config.distill
        if self._teacher is not None and distill is not None:
            with torch.no_grad(), self._autocast():
                targets = batch.run(self._teacher)
            soft = teacher_loss(outputs, targets, batch, distill.temperature)
            return mix_losses(outcome.loss, soft, distill)
        if outcome.loss is None:
            raise InvalidArgumentError(
                "a batch without labels has no loss: pass (inputs, labels), a mapping with the key "
                "labels, a loss, or a teacher"
            )
        return outcome.loss

    def _autocast(self) -> AbstractContextManager[object]:
        precision = self._config.precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        device_type = self._accelerator.device.type
        return torch.autocast(device_type, dtype=dtype, enabled=precision != "no")

    def _read(self, sums: _EpochSums, epoch: int, step: int, steps: int) -> None:
        """Move the sums of the last steps to the host, added up over all processes."""
        if not sums.unread:
            return
        table = torch.stack(sums.unread)
        if self._accelerator.num_processes > 1:
            table = self._accelerator.reduce(table, "sum")
        first = step - len(sums.unread) + 1
        sums.unread.clear()
        for number, (loss, wrong, examples, penalty) in enumerate(table.tolist(), start=first):
            if not math.isfinite(loss):
                lr = learning_rate(self._config, epoch * steps + number - 1, steps)
                raise DivergedError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {number} of {steps}, at "
                    f"learning rate {lr:.3g}: try a lower lr"
                )
            sums.loss += loss
            sums.penalty += penalty
            sums.wrong += wrong
            sums.examples += examples
