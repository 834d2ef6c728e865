"""What is rounded of a model or of named tensors, and how a file is made of it."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import log2
from pathlib import Path
from sys import maxsize

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.bias_correction import correct_biases
from tensorpress.codec.model_tensors import check_finite, stored_tensors
from tensorpress.codec.quantizers import MAX_SYMBOL, StepQuantizer
from tensorpress.codec.save_load import save
from tensorpress.codec.state_dict import check_tensors, save_tensors
from tensorpress.errors import InvalidArgumentError
from tensorpress.quantize.fold_batch_norm import merge_statistics
from tensorpress.quantize.gptaq import round_in_order
from tensorpress.quantize.rounded_model import Attempt
from tensorpress.quantize.step_search import USED, Search, first_base
from tensorpress.quantize.weight_calibration import (
    Weight,
    calibrated_weights,
    mean_log_step,
    plain_weights,
    rms,
)

PRICE = 0.04
"""What a bit is worth in squared steps, without data. It is less than the squared error alone would
say: weights that are more often rounded towards zero than away from it weaken the responses. With
feedback nearest rounding did better (docs/coding.md)."""

_FINER = -4.0  # log2 of the relative steps of vectors by those of weights
_FINEST, _COARSEST = -10.0, -4.0
_LOWEST, _RANGE = -18.0, 26.0  # log2 of the finest relative steps of weights, and octaves above
_HALVINGS = 16
_FILES, _AIM, _EXTRA = 5, 0.997, 0.03  # files written, share of a budget aimed at and first guess


class Coding(ABC):
    """A model or tensors on the way to a file."""

    def __init__(self, tensors: Mapping[str, Tensor], weights: Sequence[Weight]) -> None:
        self.values = sum(tensor.numel() for tensor in tensors.values())
        self._weights = weights
        self._price = 0.0 if any(weight.response for weight in weights) else PRICE
        self._relative = mean_log_step(weights) if weights else 0.0
        self._count = sum(int(weight.values.count_nonzero()) for weight in weights)
        self._lowest = _LOWEST - self._relative
        self._sizes = [(w.values.numel(), log2(rms(w.values)) - w.log_step) for w in weights]

    @abstractmethod
    def _write(self, attempt: Attempt, path: Path, relative: float) -> None:
        """Write a file: `relative` is the log2 of the steps of vectors by their size."""

    def _refined(self, attempt: Attempt) -> Attempt:
        """Return an attempt at the same steps by what takes too long to search with."""
        return attempt

    def within_size(self, limit: int) -> Attempt:
        """Return the best attempt whose file has at most so many bytes.

        What symbols take is estimated (`coded_bits`); files are written to learn what is missing.

        Raises
        ------
        InvalidArgumentError
            If there is none.
        """
        best, last = None, None
        smallest = maxsize
        start, extra = first_base(8.0 * limit, self._sizes), _EXTRA * limit
        for _ in range(_FILES):
            aim = max(_AIM * limit - extra, 0.0)
            search = Search(self._rounded, aim, max(self._count, 1) / 8, self._lowest)
            found = search.run(start, self._price)
            if last is not None and (found.base, found.cost) == (last.base, last.cost):
                break  # and so would all that follow
            made = self._refined(found)
            self._make(made)
            size, last = len(made.data), found
            smallest = min(size, smallest)
            if size <= limit and (best is None or size > len(best.data)):
                best = made
            enough = USED * limit <= size <= limit
            if enough or found.base <= self._lowest or (aim == 0 and best is None):
                break
            start, extra = found.base, size - found.cost
        if best is None:
            raise InvalidArgumentError(
                f"{limit:,} bytes are too few: the smallest file found has {smallest:,}"
            )
        return best

    def within_error(self, limit: float) -> Attempt:
        """Return the attempt of the coarsest steps whose error is at most `limit`."""
        low = self._lowest
        high, best = low + _RANGE, self._rounded(low, self._price)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = self._rounded(middle, self._price)
            if found.error <= limit:
                low, best = middle, found
                if found.error >= USED * limit:
                    break
            else:
                high = middle
        self._make(best)
        return best

    def _rounded(self, base: float, price: float) -> Attempt:
        return Attempt.at(self._weights, base, price)

    def _make(self, attempt: Attempt) -> None:
        """Write the file of an attempt, with the biases that suit it."""
        relative = attempt.base + self._relative + _FINER
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "a.tpz")
            self._write(attempt, path, max(_FINEST, min(relative, _COARSEST)))
            attempt.data = path.read_bytes()


class StateCoding(Coding):
    """Named tensors: those of two axes or more are rounded, the others stored as they are.

    Raises
    ------
    InvalidArgumentError
        Naming a tensor that cannot be stored.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        check_tensors(tensors)
        self._tensors = dict(tensors)
        super().__init__(tensors, plain_weights(_matrices(tensors)))

    def _write(self, attempt: Attempt, path: Path, relative: float) -> None:
        rounded = {w.name: attempt.values(w) for w in self._weights}
        save_tensors({**self._tensors, **rounded}, path, attempt.quantizers)


class ModelCoding(Coding):
    """A model: its weights are rounded, its vectors finely so.

    Raises
    ------
    InvalidArgumentError
        Naming a tensor that cannot be stored.
    """

    def __init__(
        self, model: nn.Module, network: str | None, batches: Sequence[Batch] | None, seed: int
    ) -> None:
        for name, tensor in stored_tensors(model).items():
            check_finite(name, tensor)
        self._dense, self._network, self._batches = model, network, batches
        self._seed = seed
        self._merged = deepcopy(model).eval()
        merge_statistics(self._merged)
        tensors = stored_tensors(self._merged)
        matrices = _matrices(tensors)
        if batches is None:
            weights = plain_weights(matrices)
        else:
            weights = calibrated_weights(self._merged, matrices, batches, seed)
        super().__init__(tensors, weights)

    def _refined(self, attempt: Attempt) -> Attempt:
        if self._batches is None:
            return attempt
        of_layer = {w.layer: w.name for w in self._weights if w.layer is not None}
        quantizers = {layer: attempt.quantizers[name] for layer, name in of_layer.items()}
        model = self._rounded_model(attempt)
        found = round_in_order(
            model, self._merged, quantizers, self._batches, self._seed, attempt.price
        )
        symbols = {of_layer[layer]: one.symbols for layer, one in found.items()}
        squares = {of_layer[layer]: (one.lost, one.size) for layer, one in found.items()}
        return replace(
            attempt, symbols=attempt.symbols | symbols, squares=attempt.squares | squares
        )

    def _rounded_model(self, attempt: Attempt) -> nn.Module:
        rounded = deepcopy(self._merged)
        tensors = stored_tensors(rounded)
        with torch.no_grad():
            for weight in self._weights:
                tensors[weight.name].copy_(attempt.values(weight))
        return rounded

    def _write(self, attempt: Attempt, path: Path, relative: float) -> None:
        rounded = self._rounded_model(attempt)
        tensors = stored_tensors(rounded)
        if self._batches is not None:
            correct_biases(rounded, self._dense, self._batches)
        vectors = {
            name: _fine(tensor, relative)
            for name, tensor in tensors.items()
            if tensor.is_floating_point() and name not in attempt.quantizers
        }
        save(rounded, path, network=self._network, quantizer={**vectors, **attempt.quantizers})


def _matrices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel()
    }


def _fine(tensor: Tensor, relative: float) -> StepQuantizer:
    """Return a quantizer of a vector, by the log2 of its step in root mean squares."""
    if not tensor.numel():
        return StepQuantizer(0)
    most = float(tensor.detach().double().abs().max())
    return StepQuantizer.nearest(max(rms(tensor) * 2.0**relative, 2 * most / MAX_SYMBOL))
