"""The progress report of a run: a bar on a terminal, log lines elsewhere."""

import logging
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tensorpress.train.history import EpochMetrics

logger = logging.getLogger("tensorpress.train")


class ProgressReport:
    """A report of a run's progress, as a context manager around the run.

    On a terminal a bar shows epoch, batch, loss, last validation error and the time left for the
    whole run. On a terminal and elsewhere, the logger ``tensorpress.train`` gets one line of level
    INFO for every epoch.

    Parameters
    ----------
    epochs : int
        Epochs of the run.
    steps : int
        Steps of an epoch.
    done : int
        Epochs that an earlier, interrupted run has done.
    silent : bool
        Whether nothing is reported, as in all processes but the main one.
    """

    def __init__(self, epochs: int, steps: int, done: int = 0, silent: bool = False) -> None:
        console = Console()
        self._epochs, self._steps, self._silent = epochs, steps, silent
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]} batch {task.fields[batch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}{task.fields[error]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=silent or not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=epochs * steps, completed=done * steps, **self._fields(done, 0), error=""
        )

    def __enter__(self) -> "ProgressReport":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the bar."""
        self._bar.stop()

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Report that ``step`` steps of an epoch (from 0) are done."""
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
