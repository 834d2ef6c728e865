"""The search for the file of a model: calibration, GPTAQ, bias correction and tuned vectors."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.bias_correction import channel_means, correct_biases
from tensorpress.calibrate.examples import rebatch
from tensorpress.calibrate.unrolled import unroll
from tensorpress.codec.model_tensors import check_finite, stored_tensors
from tensorpress.codec.quantizers import MAX_SYMBOL, StepQuantizer
from tensorpress.codec.save_load import save
from tensorpress.measure.cost import freeze
from tensorpress.quantize.file_search import FileSearch, weight_tensors
from tensorpress.quantize.fold_batch_norm import merge_statistics
from tensorpress.quantize.gptaq import common_call_order, round_in_order
from tensorpress.quantize.rounded_model import RoundedModel
from tensorpress.quantize.weight_calibration import calibrated_weights, plain_weights, rms
from tensorpress.reconstruct.block_refinement import refine_blocks
from tensorpress.schemes.folding import fold

_TUNED_BATCH = 32  # examples of a step in which vectors are trained
_RATE = 1e-3  # of this training, relative to a vector's root mean square
_ENOUGH = 0.01  # relative error of outputs up to which vectors are not trained


class FileTexts(TypedDict):
    """Texts in a model's file, as for `tensorpress.save`."""

    network: str | None
    data: str | None
    preprocess: str | None


class ModelFileSearch(FileSearch):
    """A search for a model: its weights are rounded, its vectors at much finer steps.

    Parameters
    ----------
    model : nn.Module
        The model, left unchanged.
    batches : sequence of Batch or None
        Calibration data.
    seed : int
        Seed of the sampled positions and directions in calibration.
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
        weights_by_name = weight_tensors(tensors)
        if batches is None:
            weights = plain_weights(weights_by_name)
        else:
            weights = calibrated_weights(self._merged, weights_by_name, batches, seed)
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
            self._order,
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

    @cached_property
    def _order(self) -> Sequence[str]:
        """Layers to round in sequence, in the order of their calls."""
        names = [weight.layer for weight in self._weights if weight.layer is not None]
        return common_call_order(unroll(self._merged)[0], names, self._batches or ())

    @cached_property
    def _means(self) -> Mapping[str, Sequence[Tensor]]:
        """Mean outputs of the dense model by layer."""
        return channel_means(unroll(self._model)[0], self._batches or ())

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
            correct_biases(unroll(model)[0], self._means, self._batches)
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


def _vector_quantizer(tensor: Tensor, log_step: float) -> StepQuantizer:
    """Return the quantizer of a vector, for log2 of its step in root mean squares."""
    if not tensor.numel():
        return StepQuantizer(0)
    largest = float(tensor.detach().double().abs().max())
    return StepQuantizer.nearest(max(rms(tensor) * 2.0**log_step, 2 * largest / MAX_SYMBOL))
