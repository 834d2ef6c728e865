"""One step for all weights of a checkpoint, found from samples of its tensors."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import log2

from torch import Tensor

from tensorpress.codec.quantizers import PER_OCTAVE
from tensorpress.codec.state_dict import check_tensors, save_tensors
from tensorpress.errors import InvalidArgumentError
from tensorpress.quantize.file_search import MIN_STEP, PRICE
from tensorpress.quantize.rounded_model import RoundedModel
from tensorpress.quantize.step_search import Search, initial_base
from tensorpress.quantize.weight_calibration import Weight, rms

_SAMPLE, _SHARE = 1 << 15, 1 << 12  # most and least values sampled of a weight
_FILE_BYTES = 60  # of a file of one tensor, besides the values
_USE = 0.995  # share of the bits to aim at, because a sample is not exact


@dataclass(frozen=True)
class CommonStep:
    """A step for all weights, and the price of a bit in squared steps."""

    base: float
    price: float

    def save(self, name: str, tensor: Tensor, path: str | os.PathLike[str]) -> int:
        """Write a tensor to a file, rounded if it has two axes; return the size in bytes."""
        if not is_weight(tensor):
            return save_tensors({name: tensor}, path, {})
        weight = Weight(name, tensor, 0.0)
        quantizer = weight.quantizer(self.base)
        values = quantizer.values(weight.symbols(quantizer, self.price), tensor.dtype)
        return save_tensors({name: values}, path, {name: quantizer})


def is_weight(tensor: Tensor) -> bool:
    """Return whether a tensor is rounded to multiples of a step."""
    return tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() > 0


def find_common_step(tensors: Iterable[tuple[str, Tensor]], bits: float) -> CommonStep:
    """Return the step at which the files of all tensors take about ``bits`` bits per value.

    Parameters
    ----------
    tensors : iterable of (str, Tensor)
        Names and tensors, read once; a sample of each stays in memory.
    bits : float
        The bits of all files divided by the number of values.

    Raises
    ------
    InvalidArgumentError
        If they do not suffice for the tensors that are not rounded.

    Examples
    --------
    >>> import torch
    >>> step = find_common_step([("a", torch.randn(300, 200))], 4.0)
    >>> 0.2 < 2**step.base < 0.3
    True
    """
    samples, budget = [], 0.0
    for name, tensor in tensors:
        check_tensors({name: tensor})
        budget += bits * tensor.numel() / 8 - _FILE_BYTES
        if is_weight(tensor):
            share = max(_SHARE, tensor.numel() // 64)
            samples.append(Weight(name, tensor, 0.0).sample(min(share, _SAMPLE)))
        else:
            budget -= 2 * tensor.numel() if tensor.is_floating_point() else tensor.nbytes
    if samples and budget <= 0:
        raise InvalidArgumentError(
            f"{bits:g} bits per value are too few: tensors that are not rounded take more"
        )
    sizes = [(w.count, log2(rms(w.values))) for w in samples]

    def attempt(base: float, price: float) -> RoundedModel:
        return RoundedModel.from_weights(samples, round(base * PER_OCTAVE) / PER_OCTAVE, price)

    total = sum(count for count, _ in sizes)
    mean = sum(count * size for count, size in sizes) / max(total, 1)
    target = _USE * max(budget, 0.0)
    search = Search(attempt, target, max(total, 1) / 8, mean + MIN_STEP)
    result = search.run(initial_base(8 * target, sizes), PRICE)
    return CommonStep(result.base, result.price)
