"""Progress bars on a terminal."""

import logging
import os
from time import perf_counter

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from typing_extensions import Self

logger = logging.getLogger("tensorpress.checkpoints")

SHOW_PROGRESS = "TENSORPRESS_PROGRESS"
"""The environment variable that hides all bars if it is 0."""


def show_progress() -> bool:
    """Return whether bars are shown: on a terminal, unless `SHOW_PROGRESS` is 0."""
    return Console().is_terminal and os.environ.get(SHOW_PROGRESS) != "0"


class ProgressBar:
    """A context manager that shows a progress bar on a terminal, and nothing elsewhere.

    Parameters
    ----------
    columns : ProgressColumn
        The columns of the bar.
    silent : bool
        Whether to show nothing on a terminal either.
    """

    def __init__(self, *columns: ProgressColumn, silent: bool = False) -> None:
        disable = silent or not show_progress()
        self._bar = Progress(*columns, console=Console(), disable=disable)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the bar."""
        self._bar.stop()


class ByteProgress(ProgressBar):
    """The progress of pressing a checkpoint, in bytes that were read.

    On a terminal, a bar shows bytes, throughput and the remaining time. The logger
    ``tensorpress.checkpoints`` writes one line per shard at level INFO.

    Parameters
    ----------
    total : int
        Size of the whole checkpoint in bytes.
    """

    def __init__(self, total: int) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("pressing", total=total)
        self._start, self._read = perf_counter(), 0

    def begin(self, shard: str) -> None:
        """Show the name of the shard."""
        self._start, self._read = perf_counter(), 0
        self._bar.update(self._task, description=f"pressing {shard}")

    def advance(self, size: int) -> None:
        """Report that a tensor of ``size`` bytes is done."""
        self._read += size
        self._bar.advance(self._task, size)

    def end(self, shard: str, size: int) -> None:
        """Report that a shard of ``size`` bytes is done, in any process."""
        self._bar.advance(self._task, size - self._read)
        if self._read:
            seconds = perf_counter() - self._start
            speed = self._read / 1e6 / seconds
            logger.info("%s: %.1f MB in %.1f s, %.1f MB/s", shard, size / 1e6, seconds, speed)
        self._read = 0


class LayerProgress(ProgressBar):
    """The progress of pressing layer by layer, with the name of the layer.

    The logger ``tensorpress.checkpoints`` writes one line per block at level INFO.

    Parameters
    ----------
    total : int
        Number of layers or other units.
    title : str
        The name of the activity.
    unit : str
        The name of the units.
    """

    def __init__(self, total: int, title: str = "pressing", unit: str = "layers") -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(TextColumn("{task.description}"), *columns)
        self._title, self._unit, self._total, self._done = title, unit, total, 0
        self._task = self._bar.add_task(title, total=total)
        self._start = perf_counter()

    def begin(self, layer: str) -> None:
        """Show the next layer, and count it."""
        self._bar.update(self._task, description=f"{self._title} {layer}")
        self.advance(1)

    def advance(self, layers: int) -> None:
        """Report that layers are done."""
        self._done += layers
        self._bar.advance(self._task, layers)

    def end(self, block: str) -> None:
        """Report that a block is done."""
        seconds, self._start = perf_counter() - self._start, perf_counter()
        logger.info(
            "%s: %s took %.1f s, %d of %d %s are done",
            *(self._title, block, seconds, self._done, self._total, self._unit),
        )
