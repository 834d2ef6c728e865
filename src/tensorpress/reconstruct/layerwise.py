"""Fits the layers of a model to its responses on calibration data, one layer after the other."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, CalibrationBatch, collect_batches
from tensorpress.calibrate.calibration import Calibration
from tensorpress.calibrate.gradient_moments import GradientMoments, gradient_moments
from tensorpress.calibrate.input_moments import Moments, input_moments
from tensorpress.calibrate.loss_curvature import LossCurvature
from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError, ModelMismatchError, unknown_name
from tensorpress.reconstruct.alternating_fit import fit_kernels
from tensorpress.reconstruct.batch_norm import (
    absorb_bias,
    move_norms,
    norm_scale_shift,
    norm_statistics,
)
from tensorpress.reconstruct.channel_selection import choose_channels
from tensorpress.reconstruct.curvature_fit import CurvatureFit
from tensorpress.reconstruct.data_checks import column_moments, sample_columns, warn_of_few_rows
from tensorpress.reconstruct.embedding_fit import fit_embedding, is_embedding, record_lookups
from tensorpress.reconstruct.gradient_fit import fit_to_gradients
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.reconstruct.layer_fit import LayerData, fit_layer
from tensorpress.reconstruct.next_op import Following, find_next_ops
from tensorpress.reconstruct.regression import shrunk
from tensorpress.reconstruct.relu_fit import ActivatedFit
from tensorpress.reconstruct.samples import WIDE, Positions, inputs_in_order, sample_responses
from tensorpress.reconstruct.second_moment import BlockMoment, SecondMoment
from tensorpress.reconstruct.unfitted import SVD_WEIGHT, as_chain, reason_unfitted
from tensorpress.schemes.canonical_kernel import weight_to_kernel
from tensorpress.schemes.initialization import (
    StartValues,
    decompose_weight,
    factor_values,
    press_one_layer,
)
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.pressed_layer import Composed
from tensorpress.utils.module_tree import locate_weight

Reconstruct = Literal["norms", "refit", "inputs", "linear", "nonlinear"]
"""What is fitted to calibration data.

- norms: only the statistics of batch norms, after all layers were decomposed.
- refit: the last factor and the bias of each decomposed layer.
- inputs: all factors, in the norm of the dense model's inputs, then the statistics of batch norms.
- linear: all factors and the bias, with the inputs that the layers pressed before produce.
- nonlinear: as linear, but responses are matched after the ReLU that follows.
"""

logger = logging.getLogger("tensorpress.press")


def reconstruction(
    model: nn.Module,
    calibration: Iterable[CalibrationBatch] | Calibration | LossCurvature,
    kind: Reconstruct | None,
    seed: int,
) -> "Reconstruction | CurvatureFit":
    """Return how layers are fitted to calibration data.

    Parameters
    ----------
    model : nn.Module
        The model to be pressed.
    calibration : iterable, Calibration or LossCurvature
        Batches, or statistics collected from them.
    kind : str or None
        What is fitted (see `Reconstruct`); None for the default.
    seed : int
        Seed of the sampled positions.

    Raises
    ------
    InvalidArgumentError
        If there are no batches, or the kind needs batches and there are only moments.
    """
    if isinstance(calibration, LossCurvature):
        if kind is not None:
            raise InvalidArgumentError(
                f"reconstruct={kind!r} needs batches or a Calibration: a LossCurvature needs no "
                "reconstruct: leave it out"
            )
        return CurvatureFit(calibration)
    if not isinstance(calibration, Calibration):
        return Reconstruction(collect_batches(calibration, model), kind or "linear", seed)
    if kind not in (None, "inputs"):
        raise InvalidArgumentError(
            f"reconstruct={kind!r} needs batches to run the model on; a Calibration is enough for "
            "'inputs'"
        )
    return Reconstruction((), "inputs", seed, calibration.moments)


def check_reconstruction(kind: str | None, calibrated: bool, init: str, parallel: bool) -> None:
    """Raise an `InvalidArgumentError` for arguments that contradict each other."""
    if kind is not None and kind not in get_args(Reconstruct):
        raise unknown_name("reconstruct", kind, get_args(Reconstruct))
    if kind is not None and not calibrated:
        raise InvalidArgumentError(f"reconstruct={kind!r} needs calibration data")
    if calibrated and init != "decompose":
        raise InvalidArgumentError(
            f"init={init!r} draws factors at random: there is nothing to calibrate"
        )
    if calibrated and parallel:
        raise InvalidArgumentError(
            "with calibration each layer is fitted after the one before it, in one process"
        )


@dataclass(frozen=True)
class Reconstruction:
    """Fits layers to batches, or to moments that were collected from them.

    Attributes
    ----------
    batches : sequence of Batch
        Calibration data; empty if there are moments.
    kind : str
        What is fitted.
    seed : int
        Seed of the sampled positions.
    moments : mapping of str to Moments, optional
        Moments of the layers' inputs, for the kind "inputs".
    """

    batches: Sequence[Batch]
    kind: Reconstruct
    seed: int
    moments: Mapping[str, Moments] | None = None

    def values(
        self,
        model: nn.Module,
        layers: Sequence[LayerPlan],
        weight_of: Callable[[LayerPlan], Tensor],
    ) -> Iterator[tuple[LayerPlan, StartValues]]:
        """Yield each layer with its factors, in the order in which a model calls them.

        Replace each layer as soon as it is yielded: the inputs of later layers come from the model
        with the layers pressed so far, so that these make up for earlier errors. Responses are
        those of the dense model.
        """
        left = {layer.name: layer for layer in layers}
        reasons: dict[str, str] = {}
        gradients: Mapping[str, GradientMoments] = {}
        moves = self.kind in ("norms", "inputs") and len(self.batches) > 0
        norms = norm_statistics(model, self.batches) if moves else {}
        if self.kind != "norms":
            ways = self._by_inputs if self.kind == "inputs" else self._by_responses
            chains = {name: as_chain(model, layer) for name, layer in left.items()}
            refused = {name: reason_unfitted(model, layer) for name, layer in chains.items()}
            reasons = {name: reason for name, reason in refused.items() if reason is not None}
            rebuilt = {name: left[name] for name in reasons if left[name].scheme == SVD_WEIGHT}
            gradients = self._gradients(model, rebuilt)
            by_name = {name: layer for name, layer in chains.items() if name not in reasons}
            for name, values in ways(model, by_name, weight_of, reasons):
                if left[name].scheme == SVD_WEIGHT:
                    values = _as_rebuilt(values)
                yield left.pop(name), values
        for name, layer in left.items():
            if name in gradients:
                yield layer, fit_to_gradients(layer, weight_of(layer), gradients[name])
                continue
            values = decompose_weight(layer, weight_of(layer))
            if self.kind != "norms":
                reason = reasons.get(name, "the calibration data do not reach it")
                logger.warning("layer %s: decomposed by its weight alone, because %s", name, reason)
                values = replace(values, unfitted=reason)
            yield layer, values
        if norms:
            move_norms(model, norms, norm_statistics(model, self.batches))

    def _gradients(
        self, model: nn.Module, layers: Mapping[str, LayerPlan]
    ) -> Mapping[str, GradientMoments]:
        """Return the gradient moments of weights whose inputs cannot be observed."""
        places = {name: locate_weight(model, name) for name in layers}
        weights = {
            name: (weight, layers[name].spec)
            for name, (module, key) in places.items()
            if isinstance(weight := module._parameters.get(key), nn.Parameter)
        }
        if not weights or not self.batches:
            return {}
        return gradient_moments(model, self.batches, weights, seed=self.seed)

    def _by_inputs(
        self,
        model: nn.Module,
        layers: dict[str, LayerPlan],
        weight_of: Callable[[LayerPlan], Tensor],
        reasons: dict[str, str],
    ) -> Iterator[tuple[str, StartValues]]:
        moments = self.moments
        if moments is None:
            moments = input_moments(model, self.batches, seed=self.seed)
        embeddings = [name for name in layers if is_embedding(model.get_submodule(name))]
        if self.batches:
            yield from self._by_lookups(model, embeddings, layers, weight_of)
        else:
            reasons |= dict.fromkeys(embeddings, "a Calibration does not count look-ups")
        for name, sums in moments.items():
            if name in layers:
                weight = weight_of(layers[name])
                pressed, dense = decompose_start(layers[name], weight)
                blocks = [block.to(dense) for block in sums.means()]
                _check_fits(name, BlockMoment(blocks), dense)
                places = sample_columns(blocks[0].shape[-1]).to(dense.device)
                sample = blocks[0][:, places][..., places]
                warn_of_few_rows(name, sums.rows, dense[0, 0].numel(), sample)
                blocks = [shrunk(block, sums.rows) for block in blocks]
                second: SecondMoment = blocks[0] if len(blocks) == 1 else BlockMoment(blocks)
                kernels = pressed.kernels()
                if pressed.selection() is not None:
                    kernels = choose_channels(pressed, name, dense, blocks[0])
                fit = fit_kernels(kernels, dense, second, Composition.of(pressed))
                yield name, start_values(pressed, fit.kernels, weight)

    def _by_lookups(
        self,
        model: nn.Module,
        names: Sequence[str],
        layers: Mapping[str, LayerPlan],
        weight_of: Callable[[LayerPlan], Tensor],
    ) -> Iterator[tuple[str, StartValues]]:
        """Fit embeddings in the norm of their look-ups."""
        lookups = record_lookups(model, names, self.batches, seed=self.seed) if names else {}
        for name, lookup in lookups.items():
            weight = weight_of(layers[name])
            pressed, dense = decompose_start(layers[name], weight)
            places = pressed.last_places if self.kind == "refit" else None
            start, composition = pressed.kernels(), Composition.of(pressed)
            kernels = fit_embedding(start, dense, lookup, composition, places)
            yield name, start_values(pressed, kernels, weight)

    def _by_responses(
        self,
        model: nn.Module,
        layers: dict[str, LayerPlan],
        weight_of: Callable[[LayerPlan], Tensor],
        reasons: dict[str, str],
    ) -> Iterator[tuple[str, StartValues]]:
        positions = Positions.spread(self.batches, self.seed)
        embeddings = [name for name in layers if is_embedding(model.get_submodule(name))]
        others = [name for name in layers if name not in embeddings]
        dense_pass = sample_responses(model, others, self.batches, positions)
        yield from self._by_lookups(model, embeddings, layers, weight_of)
        responses, names = dense_pass.rows, list(dense_pass.rows)
        after = find_next_ops(model, names, self.batches[0])
        reasons |= dict.fromkeys(names, "how often it is called depends on the layers before it")
        for name, inputs in inputs_in_order(model, names, self.batches, positions, dense_pass):
            share = positions.share(model.get_submodule(name))
            _check_rows(name, inputs, share * len(self.batches))
            if self.kind == "nonlinear" and not after[name].relu:
                logger.info("layer %s: fitted linearly, because %s follows", name, after[name])
            norm, has_bias = after[name].norm, layers[name].spec.bias
            biased = has_bias or norm is not None
            data = _data(inputs, responses.pop(name), after[name], self.kind, biased)
            weight = weight_of(layers[name])
            pressed, dense = decompose_start(layers[name], weight)
            fit = self._fit(name, pressed, dense, data)
            bias = fit.bias.flatten().to(weight)
            if norm is not None and not has_bias:
                absorb_bias(norm, bias)
            yield name, start_values(pressed, fit.kernels, weight, bias)

    def _fit(self, name: str, pressed: Composed, dense: Tensor, data: LayerData) -> ActivatedFit:
        if self.kind == "refit":
            how: dict[str, Any] = {"places": pressed.last_places}
        elif pressed.selection() is not None:
            how = {"choose": partial(choose_channels, pressed, name)}
        else:
            how = {}
        return fit_layer(pressed.kernels(), dense, data, Composition.of(pressed), **how)


def _check_fits(name: str, second: BlockMoment, dense: Tensor) -> None:
    """Raise a `ModelMismatchError` if moments belong to another layer."""
    groups, columns = len(dense), dense[0, 0].numel()
    if second.shape != (groups, columns, columns):
        raise ModelMismatchError(
            f"layer {name!r} has {columns:,} inputs per response in {groups:,} groups, but the "
            f"calibration has {second.shape[-1]:,} in {second.shape[0]:,}"
        )


def _check_rows(name: str, inputs: Tensor, most: int) -> None:
    """Warn of too few rows, except if rows were limited to ``most`` because they are long."""
    if len(inputs) >= most and inputs.shape[-1] > WIDE:
        logger.info(
            "layer %s: fitted to a sample of %s inputs, because each has %s numbers",
            *(name, f"{len(inputs):,}", f"{inputs.shape[-1]:,}"),
        )
    else:
        warn_of_few_rows(name, len(inputs), inputs.shape[-1], column_moments(inputs))


def decompose_start(layer: LayerPlan, weight: Tensor) -> tuple[Composed, Tensor]:
    """Return a layer decomposed by its weight alone, and the dense kernel."""
    pressed = press_one_layer(layer, weight)
    assert isinstance(pressed, Composed)
    return pressed, to_working_precision(weight_to_kernel(weight, layer.spec))


def start_values(
    layer: Composed, kernels: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None
) -> StartValues:
    """Put kernels into a layer; return its factors, and its error relative to the weight."""
    layer.put(layer.balance(kernels))
    factors = tuple(value.detach() for value in factor_values(layer))
    dense = to_working_precision(weight)
    error = (to_working_precision(layer.dense_weight()) - dense).norm() / dense.norm().clamp_min(
        1e-30
    )
    return StartValues(factors, float(error), bias)


def _as_rebuilt(values: StartValues) -> StartValues:
    """Turn the factors of two Linear layers, V (r, n) and U (m, r), into those of U Vᵀ."""
    right, left = values.factors
    return replace(values, factors=(left, right.mT))


def _data(
    inputs: Tensor, responses: Tensor, after: Following, kind: Reconstruct, biased: bool
) -> LayerData:
    through = kind == "nonlinear" and after.relu
    shape = responses.shape[1:]
    scale, shift = responses.new_ones(shape), responses.new_zeros(shape)
    if through and after.norm is not None:
        scale, shift = (part.reshape(shape) for part in norm_scale_shift(after.norm))
    return LayerData(inputs, responses, scale, shift, relu=through, biased=biased)
