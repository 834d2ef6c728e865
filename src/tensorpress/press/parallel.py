"""Decomposing the layers of a plan one by one, in this process or in several at once."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.schemes.initialization import StartValues, decompose_weight
from tensorpress.schemes.layer_plan import LayerPlan


class _Packed(NamedTuple):
    """A tensor's bytes. Torch itself would move the model's own weights to shared memory."""

    values: npt.NDArray[np.uint8]
    dtype: torch.dtype


_Sent = tuple[list[_Packed], float | None]


def decompose_each(
    layers: Sequence[LayerPlan],
    weight_of: Callable[[LayerPlan], Tensor],
    processes: int = 1,
) -> Iterator[tuple[LayerPlan, StartValues]]:
    """Decompose the weights of layers, each by itself, and yield them as they are done.

    Weights are asked for when their turn comes. In several processes, which have one thread each,
    the largest come first, and about as many weights as there are processes are held twice.

    Parameters
    ----------
    layers : sequence of LayerPlan
        What to do.
    weight_of : callable
        From a layer to its dense weight; on the CPU where there are several processes.
    processes : int
        How many decompose; one is this one.

    Raises
    ------
    InvalidArgumentError
        Naming the layer that cannot be decomposed.
    TensorPressError
        If a process ends before its work does.
    """
    if min(processes, len(layers)) > 1:
        yield from _by_processes(layers, weight_of, min(processes, len(layers)))
        return
    for layer in layers:
        with _naming(layer):
            found = decompose_weight(layer, weight_of(layer))
        yield layer, found


def _by_processes(
    layers: Sequence[LayerPlan], weight_of: Callable[[LayerPlan], Tensor], processes: int
) -> Iterator[tuple[LayerPlan, StartValues]]:
    waiting = sorted(layers, key=lambda layer: layer.dense_params)
    working: dict[Future[_Sent], LayerPlan] = {}
    # A forked process would hang in the threads that its parent had started.
    with ProcessPoolExecutor(processes, get_context("spawn"), _one_thread) as pool:
        while waiting or working:
            while waiting and len(working) <= processes:  # one more, so that nobody waits for work
                layer = waiting.pop()
                working[pool.submit(_work, layer, _pack(weight_of(layer)))] = layer
            for future in wait(working, return_when=FIRST_COMPLETED).done:
                layer = working.pop(future)
                with _naming(layer):
                    found = _result(future, [layer, *working.values()])
                yield layer, found


def _work(layer: LayerPlan, weight: _Packed) -> _Sent:
    """Decompose one layer's weight, in a process of its own."""
    found = decompose_weight(layer, _unpack(weight))
    return list(map(_pack, found.factors)), found.error


def _result(future: Future[_Sent], working: Sequence[LayerPlan]) -> StartValues:
    try:
        factors, error = future.result()
    except BrokenProcessPool:
        names = ", ".join(sorted(repr(layer.name) for layer in working))
        raise TensorPressError(
            f"a process ended before its work on {names} did. Either memory ran out: use fewer "
            "processes. Or this is a script that does not start its work under `if __name__ == "
            '"__main__":`, as Python asks of scripts that use several processes'
        ) from None
    return StartValues(tuple(map(_unpack, factors)), error)


@contextmanager
def _naming(layer: LayerPlan) -> Iterator[None]:
    try:
        yield
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None


def _pack(tensor: Tensor) -> _Packed:
    # NumPy knows no bfloat16.
    return _Packed(tensor.contiguous().view(torch.uint8).numpy(), tensor.dtype)


def _unpack(packed: _Packed) -> Tensor:
    return torch.from_numpy(packed.values).view(packed.dtype)


def _one_thread() -> None:
    torch.set_num_threads(1)
