"""The search for the steps of weights whose file fills a budget."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log2
from pathlib import Path
from sys import maxsize

from torch import Tensor

from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.encode_tensors import encode_tensors
from tensorpress.codec.quantizers import PER_OCTAVE
from tensorpress.codec.state_dict import check_tensors, save_tensors
from tensorpress.errors import InvalidArgumentError
from tensorpress.quantize.rounded_model import RoundedModel
from tensorpress.quantize.step_search import MIN_USE, Search, initial_base
from tensorpress.quantize.weight_calibration import (
    Weight,
    mean_log_step,
    plain_weights,
    rms,
)

PRICE = 0.04
"""The price of a bit in squared steps, without data. It is lower than for the least squared error,
because rounding towards zero more often weakens the responses. With error feedback, a price of 0
is better (docs/coding.md)."""

_VECTOR_OFFSET = -4.0  # log2 of the relative steps of vectors, minus that of weights
_MIN_VECTOR_STEP, _MAX_VECTOR_STEP = -10.0, -4.0  # log2, relative to the root mean square
MIN_STEP, _STEP_RANGE = -18.0, 26.0  # log2 of the finest relative step of weights; octaves above
_HALVINGS = 16
_MAX_FILES = 5  # most files written in one search
_TUNED_OCTAVES = 3.0  # trained vectors have finer steps, or rounding would undo the training
_TARGET_USE = 0.997  # share of a budget to aim at
_MAX_EXTRA = 0.25  # most of a budget for all but symbols at first
_WEIGHT_BYTES = 24  # about the size of a weight's name, step and table
_LARGE = 1 << 17  # values of a model from which the coder is tried on first rows of weights
_START_SHARE, _START_VALUES = 8, 1 << 15  # share of first rows; most values in them
_RESULTS = 16  # results of a search that are cached
_SAMPLE, _SHARE = 1 << 13, 64  # values sampled of a weight: 1 in 64, at least 2^13


class FileSearch(ABC):
    """A search for the steps of a model's or state dict's weights that fill a budget.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        All tensors of the file.
    weights : sequence of Weight
        The tensors to round.
    """

    def __init__(self, tensors: Mapping[str, Tensor], weights: Sequence[Weight]) -> None:
        self.values = sum(tensor.numel() for tensor in tensors.values())
        self._weights = weights
        self._price = 0.0 if any(weight.inputs for weight in weights) else PRICE
        self._log_step = mean_log_step(weights) if weights else 0.0
        self._nonzeros = sum(int(weight.values.count_nonzero()) for weight in weights)
        self._lowest = MIN_STEP - self._log_step
        self._sampled = _sample(weights) if self._price else weights
        self._results: dict[tuple[float, float], RoundedModel] = {}
        self._sizes = [(w.values.numel(), log2(rms(w.values)) - w.log_step) for w in weights]

    @abstractmethod
    def _write(
        self, rounded: RoundedModel, path: Path, vector_step: float, *, tuned: bool = False
    ) -> None:
        """Write a file; `vector_step` is log2 of the steps of vectors in root mean squares."""

    def _tune(self, rounded: RoundedModel, limit: float) -> RoundedModel:
        """Return the weights in a file with trained vectors, if it fits the limit."""
        return rounded

    def _refine(self, rounded: RoundedModel) -> RoundedModel:
        """Return the weights rounded at the same steps by a method too slow for the search."""
        return self._round_all(rounded)

    def search_size(self, limit: int) -> RoundedModel:
        """Return the weights at the finest steps whose file has at most ``limit`` bytes.

        The bytes of symbols are estimated (`coded_bits`); the rest is measured by writing files.

        Raises
        ------
        InvalidArgumentError
            If there is no such file.
        """
        best, last = None, None
        smallest = maxsize
        start, extra = initial_base(8.0 * limit, self._sizes), self._other_bytes(limit)
        if self._price and self.values >= _LARGE:
            result = self._search(limit - extra, start)
            start, extra = result.base, extra + self._coding_loss(result)
        for _ in range(_MAX_FILES):
            # Find the steps at which symbols fill what the rest of the last file leaves of the
            # budget.
            target = max(_TARGET_USE * limit - extra, 0.0)
            result = self._search(target, start)
            if last is not None and (result.base, result.cost) == (last.base, last.cost):
                break  # all further results would be the same
            refined = self._refine(result)
            self._write_data(refined)
            size, last = len(refined.data), result
            smallest = min(size, smallest)
            if size <= limit and (best is None or size > len(best.data)):
                best = refined
            enough = MIN_USE * limit <= size <= limit
            if enough or result.base <= self._lowest or (target == 0 and best is None):
                break
            start, extra = result.base, size - result.cost
        if best is None:
            raise InvalidArgumentError(
                f"{limit:,} bytes are too few: the smallest file has {smallest:,}"
            )
        return self._tune(best, limit)

    def _search(self, target: float, start: float) -> RoundedModel:
        """Return the weights at the finest steps whose symbols take at most ``target`` bytes."""
        slope = max(self._nonzeros, 1) / 8  # bytes of one bit per nonzero value
        return Search(self._round, target, slope, self._lowest).run(start, self._price)

    def _coding_loss(self, rounded: RoundedModel) -> float:
        """Return the bytes that the coder takes beyond the estimate, measured on first rows."""
        starts = [replace(w, values=w.values[: _start_rows(w.values)]) for w in self._weights]
        parts = RoundedModel.from_weights(starts, rounded.base, rounded.price)
        quantizers = [parts.quantizers[w.name] for w in starts]
        stream = Stream()
        payload = encode_tensors(stream, [parts.values(w) for w in starts], quantizers)
        coded = len(stream.finish()) + len(payload)
        return (coded / max(parts.cost, 1.0) - 1) * rounded.cost

    def search_error(self, limit: float) -> RoundedModel:
        """Return the weights at the coarsest steps whose relative error is at most `limit`."""
        aim = limit
        for _ in range(_MAX_FILES):
            best = self._round_all(self._coarsest(aim))
            if best.error <= limit:
                break
            aim *= _TARGET_USE * limit / best.error  # the error of a sample is not exact
        self._write_data(best)
        return self._tune(best, maxsize)

    def _coarsest(self, limit: float) -> RoundedModel:
        """Return the sampled weights at the coarsest steps with an error of at most `limit`."""
        low = self._lowest
        high, best = low + _STEP_RANGE, self._round(low, self._price)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            result = self._round(middle, self._price)
            if result.error <= limit:
                low, best = middle, result
                if result.error >= MIN_USE * limit:
                    break
            else:
                high = middle
        return best

    def _round(self, base: float, price: float) -> RoundedModel:
        """Return the rounded weights, sampled if large; without data, bases are on the grid."""
        if self._price:
            base = round(base * PER_OCTAVE) / PER_OCTAVE
        key = (base, price)
        if key not in self._results:
            if len(self._results) == _RESULTS:
                del self._results[next(iter(self._results))]
            self._results[key] = RoundedModel.from_weights(self._sampled, base, price)
        return self._results[key]

    def _round_all(self, rounded: RoundedModel) -> RoundedModel:
        """Return all values of the weights rounded like a sample of them."""
        if rounded.weights is self._weights:
            return rounded
        return RoundedModel.from_weights(self._weights, rounded.base, rounded.price)

    def _other_bytes(self, limit: int) -> float:
        """Return an estimate of the bytes besides symbols: vectors as float16, steps and names."""
        others = self.values - sum(weight.values.numel() for weight in self._weights)
        return min(2 * others + _WEIGHT_BYTES * len(self._weights), _MAX_EXTRA * limit)

    def _write_data(self, rounded: RoundedModel, *, tuned: bool = False) -> None:
        """Write the file of rounded weights and store its bytes with them."""
        vector_step = rounded.base + self._log_step + _VECTOR_OFFSET
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "a.tpz")
            vector_step = max(_MIN_VECTOR_STEP, min(vector_step, _MAX_VECTOR_STEP))
            vector_step -= _TUNED_OCTAVES * tuned
            self._write(rounded, path, vector_step, tuned=tuned)
            rounded.data = path.read_bytes()


class StateFileSearch(FileSearch):
    """A search for named tensors: those of two axes or more are rounded, others are not.

    Raises
    ------
    InvalidArgumentError
        If a tensor cannot be stored; the message names it.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        check_tensors(tensors)
        self._tensors = dict(tensors)
        super().__init__(tensors, plain_weights(weight_tensors(tensors)))

    def _write(
        self, rounded: RoundedModel, path: Path, vector_step: float, *, tuned: bool = False
    ) -> None:
        values = {w.name: rounded.values(w) for w in self._weights}
        save_tensors({**self._tensors, **values}, path, rounded.quantizers)


def weight_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the floating-point tensors of two axes or more that are not empty."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel()
    }


def _sample(weights: Sequence[Weight]) -> Sequence[Weight]:
    """Return weights with a sample of the values of large ones."""
    samples = [w.sample(max(w.values.numel() // _SHARE, _SAMPLE)) for w in weights]
    same = all(sample is weight for sample, weight in zip(samples, weights, strict=True))
    return weights if same else samples


def _start_rows(values: Tensor) -> int:
    """Return the number of first rows of a weight on which coding is measured."""
    rows = min(len(values) // _START_SHARE, _START_VALUES * len(values) // values.numel())
    return max(rows, 1)
