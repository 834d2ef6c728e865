"""The search for the file of a model or state dict that fills a budget."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import log2
from pathlib import Path
from sys import maxsize
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.bias_correction import correct_biases
from tensorpress.calibrate.examples import rebatch
from tensorpress.calibrate.unrolled import unroll
from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.encode_tensors import encode_tensors
from tensorpress.codec.model_tensors import check_finite, stored_tensors
from tensorpress.codec.quantizers import MAX_SYMBOL, PER_OCTAVE, StepQuantizer
from tensorpress.codec.save_load import save
from tensorpress.codec.state_dict import check_tensors, save_tensors
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import freeze
from tensorpress.quantize.fold_batch_norm import merge_statistics
from tensorpress.quantize.gptaq import round_in_order
from tensorpress.quantize.rounded_model import RoundedModel
from tensorpress.quantize.step_search import MIN_USE, Search, initial_base
from tensorpress.quantize.weight_calibration import (
    Weight,
    calibrated_weights,
    mean_log_step,
    plain_weights,
    rms,
)
from tensorpress.reconstruct.block_refinement import refine_blocks
from tensorpress.schemes.folding import fold

PRICE = 0.04
"""The price of a bit in squared steps, without data. It is lower than for the least squared error:
weights that are rounded towards zero more often than away from it weaken the responses. With
feedback of errors, a price of 0 did better (docs/coding.md)."""

_VECTOR_OFFSET = -4.0  # log2 of the relative steps of vectors less that of weights
_MIN_VECTOR_STEP, _MAX_VECTOR_STEP = -10.0, -4.0  # log2, relative to the root mean square
MIN_STEP, _STEP_RANGE = -18.0, 26.0  # log2 of the finest relative step of weights; octaves above
_HALVINGS = 16
_MAX_FILES = 5  # written in one search
_TUNED_BATCH = 32  # examples of a step in which vectors are trained
_TUNED_OCTAVES = 3.0  # by which trained vectors are stored more finely, or nothing were left of it
_RATE = 1e-3  # of these steps, relative to a vector's root mean square
_ENOUGH = 0.01  # relative error of outputs up to which vectors are not trained
_TARGET_USE, _MAX_EXTRA = 0.997, 0.25  # shares of a budget: aimed at; at first for all but symbols
_WEIGHT_BYTES = 24  # of a weight's name, step and table, about
_LARGE = 1 << 17  # values of a model from which on the coder is tried on the starts of its weights
_START_SHARE, _START_VALUES = 8, 1 << 15  # rows of a weight that are its start; most values
_RESULTS = 16  # of one search that are remembered
_SAMPLE, _SHARE = 1 << 13, 64  # values of a weight that steps are searched with: 1 of 64, or more


class FileSearch(ABC):
    """A search for the steps of a model's or state dict's weights that fill a budget.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        All tensors of the file.
    weights : sequence of Weight
        The tensors that are rounded.
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
        """Write a file; `vector_step` is log2 of the steps of vectors by their root mean square."""

    def _tune(self, rounded: RoundedModel, limit: float) -> RoundedModel:
        """Return the weights in a file with trained vectors, where it keeps within the bytes."""
        return rounded

    def _refine(self, rounded: RoundedModel) -> RoundedModel:
        """Return the weights rounded at the same steps by a method too slow for the search."""
        return self._round_all(rounded)

    def search_size(self, limit: int) -> RoundedModel:
        """Return the weights at the finest steps whose file has at most so many bytes.

        The bytes of symbols are estimated (`coded_bits`); files are written to measure all others.

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
            # Steps at which the symbols take what the rest of the last file left of the budget.
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
                f"{limit:,} bytes are too few: the smallest file found has {smallest:,}"
            )
        return self._tune(best, limit)

    def _search(self, target: float, start: float) -> RoundedModel:
        """Return the weights at the finest steps at which the symbols take so many bytes."""
        slope = max(self._nonzeros, 1) / 8  # a bit for each value that is not zero, in bytes
        return Search(self._round, target, slope, self._lowest).run(start, self._price)

    def _coding_loss(self, rounded: RoundedModel) -> float:
        """Return the bytes that the coder takes beyond the estimate, by the starts of weights."""
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
            aim *= _TARGET_USE * limit / best.error  # the error of all values is not the sample's
        self._write_data(best)
        return self._tune(best, maxsize)

    def _coarsest(self, limit: float) -> RoundedModel:
        """Return the sampled weights at the coarsest steps of an error of at most `limit`."""
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
        """Return the weights, or a sample of the values of large ones, rounded.

        Without data, bases between two steps of the grid give the result of the nearer one, which
        is computed once.
        """
        if self._price:
            base = round(base * PER_OCTAVE) / PER_OCTAVE
        key = (base, price)
        if key not in self._results:
            if len(self._results) == _RESULTS:
                del self._results[next(iter(self._results))]
            self._results[key] = RoundedModel.from_weights(self._sampled, base, price)
        return self._results[key]

    def _round_all(self, rounded: RoundedModel) -> RoundedModel:
        """Return all values of the weights rounded as a sample of them was."""
        if rounded.weights is self._weights:
            return rounded
        return RoundedModel.from_weights(self._weights, rounded.base, rounded.price)

    def _other_bytes(self, limit: int) -> float:
        """Return an estimate of the bytes beside the symbols: vectors as float16, steps, names."""
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
    """A search for named tensors: those of two axes or more are rounded, others stored as they are.

    Raises
    ------
    InvalidArgumentError
        If a tensor cannot be stored; the message names it.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        check_tensors(tensors)
        self._tensors = dict(tensors)
        super().__init__(tensors, plain_weights(_matrices(tensors)))

    def _write(
        self, rounded: RoundedModel, path: Path, vector_step: float, *, tuned: bool = False
    ) -> None:
        values = {w.name: rounded.values(w) for w in self._weights}
        save_tensors({**self._tensors, **values}, path, rounded.quantizers)


class FileTexts(TypedDict):
    """The texts of a model's file: arguments of `tensorpress.save`."""

    network: str | None
    data: str | None
    preprocess: str | None


class ModelFileSearch(FileSearch):
    """A search for a model: its weights are rounded, and its vectors at much finer steps.

    Parameters
    ----------
    model : nn.Module
        The model; it is left untouched.
    batches : sequence of Batch or None
        Calibration data.
    seed : int
        Seed of the choices of positions and directions in calibration.
    texts : FileTexts
        The texts of the file.
    passes : int
        Most passes in which biases and norms are trained.

    Raises
    ------
    InvalidArgumentError
        If a tensor cannot be stored; the message names it.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch] | None,
        seed: int,
        texts: FileTexts,
        passes: int = 0,
    ) -> None:
        model = fold(model)
        for name, tensor in stored_tensors(model).items():
            check_finite(name, tensor)
        self._model, self._batches, self._seed, self._texts = model, batches, seed, texts
        self._passes = passes
        self._merged = deepcopy(model).eval()
        merge_statistics(self._merged)
        tensors = stored_tensors(self._merged)
        matrices = _matrices(tensors)
        if batches is None:
            weights = plain_weights(matrices)
        else:
            weights = calibrated_weights(self._merged, matrices, batches, seed)
        super().__init__(tensors, weights)

    def _refine(self, rounded: RoundedModel) -> RoundedModel:
        if self._batches is None:
            return super()._refine(rounded)
        names = {w.layer: w.name for w in self._weights if w.layer is not None}
        quantizers = {layer: rounded.quantizers[name] for layer, name in names.items()}
        layers = round_in_order(
            unroll(self._copy_model(rounded))[0],
            unroll(self._merged)[0],
            quantizers,
            self._batches,
            self._seed,
            rounded.price,
        )
        symbols = {names[name]: layer.symbols for name, layer in layers.items()}
        errors = {
            names[name]: (layer.squared_error, layer.squared_norm) for name, layer in layers.items()
        }
        return replace(
            rounded,
            symbols=rounded.symbols | symbols,
            squared_errors=rounded.squared_errors | errors,
        )

    def _copy_model(self, rounded: RoundedModel) -> nn.Module:
        """Return a copy of the model with rounded weights."""
        model = deepcopy(self._merged)
        tensors = stored_tensors(model)
        with torch.no_grad():
            for weight in self._weights:
                tensors[weight.name].copy_(rounded.values(weight))
        return model

    def _tune(self, rounded: RoundedModel, limit: float) -> RoundedModel:
        if not self._batches or not self._passes:
            return rounded
        result = replace(rounded)
        self._write_data(result, tuned=True)
        return result if len(result.data) <= limit else rounded

    def _write(
        self, rounded: RoundedModel, path: Path, vector_step: float, *, tuned: bool = False
    ) -> None:
        model = self._copy_model(rounded)
        if self._batches is not None:
            correct_biases(unroll(model)[0], unroll(self._model)[0], self._batches)
        if self._batches is not None and tuned:
            batches = rebatch(self._batches, _TUNED_BATCH)
            how: dict[str, Any] = {"epochs": self._passes, "rate": _RATE, "enough": _ENOUGH}
            with freeze(p for name, p in model.named_parameters() if name in rounded.quantizers):
                refine_blocks(model, self._model, batches, **how, seed=self._seed)
        vectors = {
            name: _vector_quantizer(tensor, vector_step)
            for name, tensor in stored_tensors(model).items()
            if tensor.is_floating_point() and name not in rounded.quantizers
        }
        quantizers = {**vectors, **rounded.quantizers}
        save(model, path, quantizer=quantizers, **self._texts)


def _matrices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the floating-point tensors of two axes or more that are not empty."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel()
    }


def _sample(weights: Sequence[Weight]) -> Sequence[Weight]:
    """Return weights with a sample of their values where these are many."""
    samples = [w.sample(max(w.values.numel() // _SHARE, _SAMPLE)) for w in weights]
    same = all(sample is weight for sample, weight in zip(samples, weights, strict=True))
    return weights if same else samples


def _start_rows(values: Tensor) -> int:
    """Return how many rows of a weight show how well it is coded: an eighth, or fewer."""
    rows = min(len(values) // _START_SHARE, _START_VALUES * len(values) // values.numel())
    return max(rows, 1)


def _vector_quantizer(tensor: Tensor, log_step: float) -> StepQuantizer:
    """Return a quantizer of a vector by log2 of its step in root mean squares."""
    if not tensor.numel():
        return StepQuantizer(0)
    largest = float(tensor.detach().double().abs().max())
    return StepQuantizer.nearest(max(rms(tensor) * 2.0**log_step, 2 * largest / MAX_SYMBOL))
