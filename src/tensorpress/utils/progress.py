"""Progress of pressing a checkpoint: a bar of bytes on a terminal, log lines elsewhere."""

import logging
from time import perf_counter
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

logger = logging.getLogger("tensorpress.checkpoints")


class ByteProgress:
    """A context manager that shows progress by the bytes that were read.

    On a terminal, a bar shows bytes, throughput and the remaining time. The logger
    ``tensorpress.checkpoints`` gets one line at level INFO for every shard.

    Parameters
    ----------
    total : int
        Size of the whole checkpoint in bytes.
    """

    def __init__(self, total: int) -> None:
        console = Console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("pressing", total=total)
        self._begun, self._read = perf_counter(), 0

    def __enter__(self) -> "ByteProgress":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def begin(self, shard: str) -> None:
        """Show which shard is being pressed."""
        self._begun, self._read = perf_counter(), 0
        self._bar.update(self._task, description=f"pressing {shard}")

    def advance(self, size: int) -> None:
        """Report that a tensor of ``size`` bytes is done."""
        self._read += size
        self._bar.advance(self._task, size)

    def end(self, shard: str, size: int) -> None:
        """Report that a shard of ``size`` bytes is done, here, in another process or before."""
        self._bar.advance(self._task, size - self._read)
        if self._read:
            seconds = perf_counter() - self._begun
            speed = self._read / 1e6 / seconds
            logger.info("%s: %.1f MB in %.1f s, %.1f MB/s", shard, size / 1e6, seconds, speed)
        self._read = 0
