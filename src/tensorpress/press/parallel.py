"""Decomposition of the layers of a plan, in this process or on an executor."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.initialization import StartValues, decompose_weight
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.utils.executors import run_jobs


class _Packed(NamedTuple):
    """A tensor's bytes. Pickling the Tensor would move the model's weights to shared memory."""

    values: npt.NDArray[np.uint8]
    dtype: torch.dtype


def decompose_each(
    layers: Sequence[LayerPlan],
    layer_weight: Callable[[LayerPlan], Tensor],
    executor: Executor | None = None,
) -> Iterator[tuple[LayerPlan, StartValues]]:
    """Yield every layer with its factors, in the order in which they are ready.

    An executor starts with the largest layers. About one weight per worker is in memory twice.

    Parameters
    ----------
    layers : sequence of LayerPlan
        The layers.
    layer_weight : callable
        Function that returns a layer's dense weight, on the CPU if there is an executor.
    executor : Executor, optional
        Workers; by default weights are decomposed in this process.

    Raises
    ------
    InvalidArgumentError
        If a layer cannot be decomposed; the message names it.
    TensorPressError
        If a worker ends before its job does.
    """
    if executor is None:
        for layer in layers:
            yield layer, _decompose(layer, layer_weight(layer))
        return
    by_name = {layer.name: layer for layer in layers}
    largest_first = sorted(layers, key=lambda layer: -layer.dense_params)
    jobs = ((layer.name, (layer, _pack(layer_weight(layer)))) for layer in largest_first)
    for name, (factors, error) in run_jobs(executor, _decompose_packed, jobs):
        yield by_name[name], StartValues(tuple(map(_unpack, factors)), error)


def _decompose(layer: LayerPlan, weight: Tensor) -> StartValues:
    try:
        return decompose_weight(layer, weight)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None


def _decompose_packed(layer: LayerPlan, weight: _Packed) -> tuple[list[_Packed], float | None]:
    values = _decompose(layer, _unpack(weight))
    return list(map(_pack, values.factors)), values.error


def _pack(tensor: Tensor) -> _Packed:
    # NumPy has no bfloat16.
    return _Packed(tensor.contiguous().view(torch.uint8).numpy(), tensor.dtype)


def _unpack(packed: _Packed) -> Tensor:
    return torch.from_numpy(packed.values).view(packed.dtype)
