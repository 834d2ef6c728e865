"""Training and evaluation batches, divided among the processes of a run."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from tensorpress.calibrate.batches import CalibrationBatch, check_batches
from tensorpress.errors import InvalidArgumentError
from tensorpress.train.processes import processes

Batch = CalibrationBatch
"""A batch in any of the forms that users may pass."""


class TrainBatches:
    """The batches of a training run that this process trains on.

    Each of n processes takes the same number of batches in every epoch. Accelerate shards a data
    loader; from any other iterable, process r takes every n-th batch starting at the r-th. One
    optimizer step therefore uses n batches of the source.

    Parameters
    ----------
    source : iterable
        An iterable of batches with a length, which is iterated once per epoch.

    Raises
    ------
    InvalidArgumentError
        If the source is a single batch, has no length, or has fewer batches than there are
        processes.

    Examples
    --------
    >>> source = [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))] * 3
    >>> batches = TrainBatches(source)
    >>> len(batches), sum(1 for _ in batches.epoch(0))
    (3, 3)
    """

    def __init__(self, source: Iterable[Batch]) -> None:
        check_batches(source)
        state = processes()
        try:
            total = len(source)  # type: ignore[arg-type]
        except TypeError:
            raise InvalidArgumentError(
                "train_batches must have a length, like a DataLoader or a list, got "
                f"{type(source).__name__}"
            ) from None
        if total < state.num_processes:
            raise InvalidArgumentError(
                f"train_batches has {total} batches, expected at least {state.num_processes}, one "
                "per process"
            )
        self._source = source
        self._shard: Any = source
        self._length: int = total // state.num_processes
        if state.num_processes > 1 and isinstance(source, DataLoader):
            self._shard = prepare_data_loader(
                source, put_on_device=False, rng_types=["generator"], dispatch_batches=False
            )
            self._length = len(self._shard)

    def __len__(self) -> int:
        """Return the number of batches per epoch in this process."""
        return self._length

    def epoch(self, index: int) -> Iterator[Batch]:
        """Return an iterator over the batches of one epoch, counted from 0.

        If the loader, its dataset or its samplers have ``set_epoch``, it is called with the number.
        """
        parts = _loader_parts(self._source)
        for part in parts if self._shard is self._source else [self._shard, *parts]:
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(index)
        if self._shard is not self._source or processes().num_processes == 1:
            return iter(self._shard)
        return islice(self._source, *_stride(self._length))

    def generators(self) -> list[torch.Generator]:
        """Return the loader's random generators, whose states are saved in checkpoints."""
        generators = (getattr(part, "generator", None) for part in _loader_parts(self._source))
        return list(dict.fromkeys(g for g in generators if isinstance(g, torch.Generator)))


def evaluation_shard(batches: Iterable[Batch]) -> Iterable[Batch]:
    """Return the batches for this process to evaluate; every batch has one process.

    Examples
    --------
    >>> list(evaluation_shard(["a", "b"]))
    ['a', 'b']
    """
    state = processes()
    if state.num_processes == 1:
        return batches
    if isinstance(batches, DataLoader):
        # If the loader shuffles, accelerate draws a seed. Here it is the same in all processes, and
        # drawing it does not change the random numbers of the run.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shard: Iterable[Batch] = prepare_data_loader(
                batches, put_on_device=False, even_batches=False, dispatch_batches=False
            )
        return shard
    return islice(batches, *_stride(None))


def _stride(length: int | None) -> tuple[int, int | None, int]:
    """Return start, stop and step of this process's batches in a shared iterable."""
    state = processes()
    stop = None if length is None else length * state.num_processes
    return state.process_index, stop, state.num_processes


def _loader_parts(loader: Any) -> list[Any]:
    """Return a loader, its dataset and its samplers."""
    sampler, batch_sampler = (getattr(loader, a, None) for a in ("sampler", "batch_sampler"))
    parts = [loader, getattr(loader, "dataset", None), sampler, batch_sampler]
    parts += [getattr(part, "sampler", None) for part in (sampler, batch_sampler)]
    return list({id(part): part for part in parts if part is not None}.values())
