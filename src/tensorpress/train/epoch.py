"""One pass over the training batches, the inner loop of `fit`."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tensorpress.errors import DivergedError, InvalidArgumentError
from tensorpress.train.batches import TrainBatches, to_device
from tensorpress.train.config import TrainConfig
from tensorpress.train.distillation import training_loss
from tensorpress.train.evaluate import checked_logits, count_wrong
from tensorpress.train.optimizers import build_optimizer, learning_rate, set_learning_rate
from tensorpress.train.progress import ProgressReport

WeightContext = Callable[[nn.Module], AbstractContextManager[None]]
Penalty = Callable[[], Tensor]

# On an accelerator, reading a loss waits for the queue of kernels to drain.
_STEPS_BETWEEN_READS = 20


@dataclass
class _Tally:
    """Sums over the examples of an epoch, and those of single steps that are not read yet."""

    loss: float = 0.0
    penalty: float = 0.0
    wrong: float = 0.0
    examples: float = 0.0
    unread: list[Tensor] = field(default_factory=list)


class EpochRunner:
    """Everything a training step needs, set up once for a run.

    Parameters
    ----------
    model
        The model on its device, in training mode.
    teacher
        The teacher on the same device, in evaluation mode, or None.
    weights
        Makes the context that forward and backward passes run in.
    penalty
        What is added to the loss of a step, or None.
    config
        The configuration of the run.
    accelerator
        The processes of the run.
    """

    def __init__(
        self,
        model: nn.Module,
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
        self._penalty = penalty
        self._config, self._accelerator = config, accelerator
        self._network = model
        if accelerator.num_processes > 1:
            device_ids = None if device.type == "cpu" else [device.index]
            self._network = DistributedDataParallel(model, device_ids=device_ids)

    def run(self, epoch: int, batches: TrainBatches, progress: ProgressReport) -> dict[str, float]:
        """Train for one epoch (from 0).

        Returns
        -------
        dict
            ``train_loss``, the mean objective, ``penalty``, its part that is one, if any, and
            ``train_error`` in per cent, over the examples of all processes; ``lr``, the learning
            rate of the last step.

        Raises
        ------
        DivergedError
            If a loss is not finite; the message names the epoch, the step and the learning rate.
        """
        config, steps = self._config, len(batches)
        device = self._accelerator.device
        every = 1 if device.type == "cpu" else _STEPS_BETWEEN_READS
        tally, step, lr = _Tally(), 0, config.lr
        for step, batch in enumerate(batches.epoch(epoch), start=1):
            inputs, labels = to_device(batch, device, config.channels_last)
            lr = learning_rate(config, epoch * steps + step - 1, steps)
            set_learning_rate(self.optimizer, lr)
            tally.unread.append(self._step(inputs, labels))
            if step % every == 0 or step == steps:
                self._read(tally, epoch, step, steps)
                progress.step(epoch, step, tally.loss / tally.examples)
        self._read(tally, epoch, step, steps)
        self.optimizer.zero_grad(set_to_none=True)
        if not tally.examples:
            raise InvalidArgumentError(f"train_batches gave no example in epoch {epoch + 1}")
        penalty = {} if self._penalty is None else {"penalty": tally.penalty / tally.examples}
        return penalty | {
            "train_loss": tally.loss / tally.examples,
            "train_error": 100 * tally.wrong / tally.examples,
            "lr": lr,
        }

    def _step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one optimizer step; return sums of loss, penalty, wrong and examples."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._weights(self._model):
            with self._autocast():
                logits = checked_logits(self._network(inputs), labels)
            loss = training_loss(logits, labels, self._config, self._teach(inputs, labels))
            penalty = torch.zeros_like(loss) if self._penalty is None else self._penalty()
            loss = loss + penalty
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self._config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            wrong = count_wrong(logits, labels).to(loss.dtype)
            count = torch.full_like(loss, len(labels))
            return torch.stack([loss * count, penalty * count, wrong, count])

    def _teach(self, inputs: Tensor, labels: Tensor) -> Tensor | None:
        if self._teacher is None:
            return None
        with torch.no_grad(), self._autocast():
            return checked_logits(self._teacher(inputs), labels)

    def _autocast(self) -> AbstractContextManager[object]:
        precision = self._config.precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        device_type = self._accelerator.device.type
        return torch.autocast(device_type, dtype=dtype, enabled=precision != "no")

    def _read(self, tally: _Tally, epoch: int, step: int, steps: int) -> None:
        """Move the unread sums of the last steps, over all processes, to the host."""
        if not tally.unread:
            return
        table = torch.stack(tally.unread)
        if self._accelerator.num_processes > 1:
            table = self._accelerator.reduce(table, "sum")
        first = step - len(tally.unread) + 1
        tally.unread.clear()
        for at, (loss, penalty, wrong, examples) in enumerate(table.tolist(), start=first):
            if not math.isfinite(loss):
                lr = learning_rate(self._config, epoch * steps + at - 1, steps)
                raise DivergedError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {at} of {steps}, at learning "
                    f"rate {lr:.3g}: try a lower lr"
                )
            tally.loss += loss
            tally.penalty += penalty
            tally.wrong += wrong
            tally.examples += examples
