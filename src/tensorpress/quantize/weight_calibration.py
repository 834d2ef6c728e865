"""The weights to round, with relative steps and errors from calibration data."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from math import log2, sqrt
from statistics import fmean

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.input_moments import Moments, input_moments
from tensorpress.calibrate.patches import outputs_first
from tensorpress.calibrate.unrolled import unroll
from tensorpress.calibrate.weight_gradients import parameter_gradients, weight_gradients
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.errors import InvalidArgumentError
from tensorpress.quantize.gptq import Feedback
from tensorpress.quantize.rate_distortion import round_values, sample_values
from tensorpress.utils.module_tree import count_references

_MAX_SYMBOL = 1 << 20
_BLOCK = 1 << 15  # values that fit into a cache
_MIN_SENSITIVITY = 1e-6  # relative to the most sensitive layer


@dataclass(frozen=True)
class InputStatistics:
    """Second moments of a layer's inputs, and the feedback of rounding errors from them.

    Wide layers have moments within blocks of columns; blocks of equal width share a tensor.

    Attributes
    ----------
    moments : sequence of Tensor
        Means of x xᵀ for consecutive columns, each of shape (blocks, groups, width, width); see
        `tensorpress.calibrate.input_moments.Moments.means`.
    feedback : sequence of Feedback
        The feedback for each.
    """

    moments: Sequence[Tensor]
    feedback: Sequence[Feedback]

    @staticmethod
    def from_moments(moments: Moments) -> "InputStatistics":
        """Return the statistics of a layer's inputs from sums over batches."""
        means = [
            torch.stack([*blocks])
            for _, blocks in groupby(moments.means(), key=lambda block: block.shape)
        ]
        return InputStatistics(means, [Feedback.from_moments(h) for h in means])

    @property
    def whole(self) -> bool:
        """Whether the moments between all columns are known."""
        return sum(map(len, self.moments)) == 1

    @property
    def log_pivot(self) -> float:
        """The mean log2 of the pivots, which weight the squared errors of columns."""
        return float(torch.cat([f.pivots.log2().flatten() for f in self.feedback]).mean())

    def gain(self, values: Tensor) -> float:
        """Return the mean squared response, summed over outputs, to noise of unit variance."""
        # outputs * tr H, summed over groups and blocks
        outputs = len(values) // self.moments[0].shape[1]
        return outputs * sum(float(h.diagonal(dim1=-2, dim2=-1).sum()) for h in self.moments)

    def round(self, values: Tensor, price: float) -> Tensor:
        """Return symbols for a weight in steps, shape (outputs, ...)."""
        pairs = zip(self.feedback, self._blocks(values), strict=True)
        # (blocks, groups, outputs, width) to (groups, outputs, columns)
        parts = [feedback.round(part, price).movedim(0, 2).flatten(2) for feedback, part in pairs]
        return torch.cat(parts, dim=2).reshape(values.shape)

    def energy(self, values: Tensor) -> float:
        """Return the mean squared response of a weight, summed over outputs."""
        # tr W H Wᵀ, summed over groups and blocks
        pairs = zip(self.moments, self._blocks(values.double()), strict=True)
        return sum(float((part @ h * part).sum()) for h, part in pairs)

    def _blocks(self, values: Tensor) -> list[Tensor]:
        """Split a weight into parts (blocks, groups, outputs per group, width)."""
        groups = self.moments[0].shape[1]
        kernel = values.detach().cpu().reshape(groups, -1, values[0].numel())
        parts = torch.split(kernel, [len(h) * h.shape[-1] for h in self.moments], dim=2)
        shapes = [(len(h), h.shape[-1]) for h in self.moments]
        pairs = zip(parts, shapes, strict=True)
        return [torch.unflatten(part, 2, shape).movedim(2, 0) for part, shape in pairs]


@dataclass(frozen=True)
class Weight:
    """A tensor to round.

    Attributes
    ----------
    name : str
        Name of the tensor.
    values : Tensor
        Floating-point values, at least one, any shape.
    log_step : float
        log2 of the tensor's step for a base of 1.
    inputs : InputStatistics or None
        Statistics of its layer's inputs.
    layer : str or None
        The layer of the tensor, if it is the only one and its moments are in one block.
    size : int or None
        The number of values of which `values` is a sample; None if it has all.
    """

    name: str
    values: Tensor
    log_step: float
    inputs: InputStatistics | None = None
    layer: str | None = None
    size: int | None = None

    @cached_property
    def largest(self) -> float:
        """The largest magnitude."""
        return float(self.values.detach().abs().max())

    @property
    def count(self) -> int:
        """The number of the tensor's values."""
        return self.values.numel() if self.size is None else self.size

    @property
    def multiplicity(self) -> float:
        """The number of values for which each sampled value stands."""
        return self.count / self.values.numel()

    def sample(self, count: int) -> "Weight":
        """Return the weight with a sample of about `count` values, including the largest.

        A weight with known inputs is not sampled, because error feedback needs all values.
        """
        if self.inputs is not None or self.values.numel() <= count:
            return self
        some = sample_values(self.values, count)
        largest = some.new_tensor([self.largest])
        return replace(self, values=torch.cat([some, largest]), size=self.values.numel())

    def quantizer(self, base: float) -> StepQuantizer:
        """Return the tensor's quantizer for log2 of the base of all steps."""
        return StepQuantizer.nearest(max(2.0 ** (base + self.log_step), self.largest / _MAX_SYMBOL))

    def symbols(self, quantizer: StepQuantizer, price: float) -> Tensor:
        """Return the tensor's symbols, int32, for a price of a bit in squared steps."""
        if self.inputs is None:
            return round_values(self.values, price, quantizer.step)
        return self.inputs.round(self.values.detach().cpu().double() / quantizer.step, price)

    def squared_error(self, rounded: Tensor) -> tuple[float, float]:
        """Return squared error and squared norm, of the responses if the inputs are known."""
        values = self.values.detach().cpu()
        if self.inputs is None:
            error, norm = squared_distance(rounded, values), squared_distance(values)
            return self.multiplicity * error, self.multiplicity * norm
        energy = self.inputs.energy
        return energy(rounded.double() - values.double()), energy(values)


def plain_weights(tensors: Mapping[str, Tensor]) -> list[Weight]:
    """Return weights that are all rounded at one step.

    For a given number of bits, equal steps minimize the sum of squared errors, because one more bit
    lowers the error equally in all tensors.
    """
    return [Weight(name, values, 0.0) for name, values in tensors.items()]


def calibrated_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], batches: Sequence[Batch], seed: int
) -> list[Weight]:
    """Return the weights of a model with relative steps from calibration data.

    Noise of variance s in a layer's weight changes the model's outputs by s times the squared norm
    of their gradient, and the layer's responses by s times their gain. The quotient g of the two
    weights the responses' squared errors, in which the rounding errors of a column are weighted by
    its pivot p. So steps are proportional to 1/√(g·p). A layer that the model runs without
    gradients gets the geometric mean of g. A tensor that is not the weight of a layer with known
    inputs gets the mean step of the others, relative to its root mean square.

    Parameters
    ----------
    model : nn.Module
        The model; it is run in eval mode.
    tensors : mapping of str to Tensor
        The tensors to round, parameters of the model.
    batches : sequence of Batch
        Calibration data, from `tensorpress.calibrate.batches.collect_batches`.
    seed : int
        Seed of the sampled positions and directions.

    Raises
    ------
    InvalidArgumentError
        If the outputs depend on no weight.
    """
    unrolled, _ = unroll(model)
    moments = {
        name: sums
        for name, sums in input_moments(unrolled, batches, seed=seed).items()
        if outputs_first(unrolled.get_submodule(name))
    }
    references = count_references(model)
    by_tensor = {id(unrolled.get_submodule(n).get_parameter("weight")): n for n in moments}
    # The layers with known inputs, by the names of their weights.
    layers = {
        name: by_tensor[id(tensor)] for name, tensor in tensors.items() if id(tensor) in by_tensor
    }
    statistics = _layer_statistics(moments, layers)
    log_steps = _layer_steps(model, tensors, batches, statistics, layers, seed)
    log_steps |= _other_steps(model, tensors, batches, log_steps, seed)
    if not log_steps:
        raise InvalidArgumentError("the outputs do not depend on any weight to round")
    weights = {}
    for name, log_step in log_steps.items():
        inputs = statistics.get(name)
        alone = inputs is not None and references[id(tensors[name])] == 1
        layer = layers[name] if alone and statistics[name].whole else None
        weights[name] = Weight(name, tensors[name], log_step, inputs, layer)
    relative = mean_log_step(weights.values())
    for name, values in tensors.items():
        if name not in weights:
            weights[name] = Weight(name, values, relative + log2(rms(values)))
    return [weights[name] for name in tensors]


def _layer_statistics(
    moments: dict[str, Moments], layers: Mapping[str, str]
) -> dict[str, InputStatistics]:
    """Return the statistics of weights of layers, which may share moments.

    The moments are freed one by one, because sums and statistics take a lot of memory.
    """
    names: dict[int, list[str]] = {}
    for name, layer in layers.items():
        names.setdefault(id(moments[layer]), []).append(name)
    result: dict[str, InputStatistics] = {}
    for sharing in names.values():
        *_, sums = (moments.pop(layers[name]) for name in sharing)
        inputs = InputStatistics.from_moments(sums)
        result |= dict.fromkeys(sharing, inputs)
    return result


def _layer_steps(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    batches: Sequence[Batch],
    statistics: Mapping[str, InputStatistics],
    layers: Mapping[str, str],
    seed: int,
) -> dict[str, float]:
    """Return log2 of the steps of layers with known inputs, by the names of their weights."""
    if not layers:
        return {}
    gradients = weight_gradients(model, batches, seed=seed)
    # The gradients of recurrent weights are summed over steps before squaring.
    recurrent = {
        name: x
        for name, x in tensors.items()
        if name in layers and isinstance(x, nn.Parameter) and name == layers[name]
    }
    gradients |= parameter_gradients(model, batches, recurrent, seed=seed)
    # g = |gradient|² / gain, at least 1e-6 of the largest; the mean log if it is unknown
    sensitivities = {
        name: gradients.get(layer, 0.0) / (statistics[name].gain(tensors[name]) or 1.0)
        for name, layer in layers.items()
    }
    positive = [value for value in sensitivities.values() if value > 0]
    mean_log_sensitivity = fmean(map(log2, positive)) if positive else 0.0
    smallest = _MIN_SENSITIVITY * max(positive, default=1.0)
    steps = {}
    for name, inputs in statistics.items():
        sensitivity = sensitivities[name]
        log_sensitivity = log2(max(sensitivity, smallest)) if sensitivity else mean_log_sensitivity
        # log2 step = -(log2 g + mean log2 p) / 2
        steps[name] = -(log_sensitivity + inputs.log_pivot) / 2
    return steps


def _other_steps(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    batches: Sequence[Batch],
    known: Mapping[str, float],
    seed: int,
) -> dict[str, float]:
    """Return log2 of the steps of other parameters on which outputs depend."""
    others = {
        name: x for name, x in tensors.items() if name not in known and isinstance(x, nn.Parameter)
    }
    if not others:
        return {}
    gradients = parameter_gradients(model, batches, others, seed=seed)
    # log2 step = -log2 (|gradient|² / values) / 2, at most 2^10 times the finest step
    steps = {
        name: -log2(gradient / others[name].numel()) / 2
        for name, gradient in gradients.items()
        if gradient > 0
    }
    coarsest = min([*known.values(), *steps.values()], default=0.0) - log2(_MIN_SENSITIVITY) / 2
    return {name: min(step, coarsest) for name, step in steps.items()}


def mean_log_step(weights: Collection[Weight]) -> float:
    """Return the mean over values of log2(step / root mean square of the tensor)."""
    # sum_w n_w log2(s_w / rms_w) / sum_w n_w
    total = sum(w.values.numel() for w in weights)
    return sum(w.values.numel() * (w.log_step - log2(rms(w.values))) for w in weights) / total


def rms(values: Tensor) -> float:
    """Return the root mean square of a tensor's values, or 1 if all are zero."""
    return sqrt(squared_distance(values.detach().cpu()) / values.numel()) or 1.0


def squared_distance(values: Tensor, others: Tensor | None = None) -> float:
    """Return the sum of squared differences between two tensors, or of squares, in float64."""
    flat, result = values.reshape(-1), 0.0
    for start in range(0, len(flat), _BLOCK):
        difference = flat[start : start + _BLOCK].double()
        if others is not None:
            difference = difference - others.reshape(-1)[start : start + _BLOCK]
        result += float(difference.dot(difference))
    return result
