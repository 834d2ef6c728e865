"""The progress report of a training run: a bar on a terminal, log lines elsewhere."""

import logging
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tensorpress.train.history import EpochMetrics
from tensorpress.utils.progress import ProgressBar

logger = logging.getLogger("tensorpress.train")


class ProgressReport(ProgressBar):
    """A context manager that reports the progress of a run.

    On a terminal, a bar shows epoch, batch, loss, last validation error and the remaining time of
    the whole run. The logger ``tensorpress.train`` always writes one line per epoch at level INFO.

    Parameters
    ----------
    epochs : int
        Number of epochs of the run.
    steps : int
        Number of steps of an epoch.
    done : int
        Number of epochs that an interrupted run has already completed.
    silent : bool
        Whether to report nothing, as in all but the main process.
    """

    def __init__(self, epochs: int, steps: int, done: int = 0, silent: bool = False) -> None:
        self._epochs, self._steps, self._silent = epochs, steps, silent
        super().__init__(
            TextColumn("epoch {task.fields[epoch]} batch {task.fields[batch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}{task.fields[error]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            silent=silent,
        )
        self._task = self._bar.add_task(
            "", total=epochs * steps, completed=done * steps, **self._fields(done, 0), error=""
        )

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Report that ``step`` steps of an epoch, counted from 0, are done."""
        fields = self._fields(epoch, step, f"{loss:.4f}")
        self._bar.update(self._task, completed=epoch * self._steps + step, **fields)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Report the end of an epoch."""
        if self._silent:
            return
        if metrics.validation_error is not None:
            error = f"  validation error {metrics.validation_error:.2f} %"
            self._bar.update(self._task, error=error)
        logger.info("%s", metrics)

    def _fields(self, epoch: int, step: int, loss: str = "–") -> dict[str, Any]:
        return {
            "epoch": f"{min(epoch + 1, self._epochs)}/{self._epochs}",
            "batch": f"{step}/{self._steps}",
            "loss": loss,
        }
