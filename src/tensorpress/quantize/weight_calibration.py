"""The tensors to round: at which steps relative to each other, how, and what is lost."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import log2, sqrt
from statistics import fmean

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.input_moments import Moments, input_moments
from tensorpress.calibrate.weight_gradients import weight_gradients
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.errors import InvalidArgumentError
from tensorpress.quantize.gptq import Feedback
from tensorpress.quantize.rate_distortion import round_values
from tensorpress.utils.module_tree import count_references

_MOST_SYMBOLS = 1 << 20  # on either side of zero
_LEAST_SENSITIVE = 1e-6  # of the most sensitive layer


@dataclass(frozen=True)
class Response:
    """What is known of a layer's inputs: second moments and feedback by block of columns and group.

    ``moments`` are those of `tensorpress.calibrate.input_moments.Moments.second`.
    """

    moments: Sequence[Tensor]
    feedback: Sequence[Sequence[Feedback]]

    @staticmethod
    def of(moments: Moments) -> "Response":
        """Return it for the inputs of a layer."""
        second = moments.second()
        return Response(second, [[Feedback.of(h) for h in block] for block in second])

    @property
    def log_pivot(self) -> float:
        """Mean log2 of what a squared error of a column counts."""
        logs = [f.pivots.log2() for block in self.feedback for f in block]
        return float(torch.cat(logs).mean())

    def gain(self, values: Tensor) -> float:
        """Return the mean squared response, summed over outputs, to noise of unit variance."""
        outputs = len(values) // len(self.moments[0])
        return outputs * sum(float(h.diagonal(dim1=1, dim2=2).sum()) for h in self.moments)

    def round(self, values: Tensor, price: float) -> Tensor:
        """Return symbols for a weight in steps, shape (outputs, ...)."""
        kernel, parts, start = self._grouped(values), [], 0
        for block in self.feedback:
            stop = start + len(block[0].order)
            pairs = zip(block, kernel[:, :, start:stop], strict=True)
            parts.append(torch.stack([f.round(part, price) for f, part in pairs]))
            start = stop
        return torch.cat(parts, dim=2).reshape(values.shape)

    def energy(self, values: Tensor) -> float:
        """Return the mean squared response of a weight of that shape, summed over outputs."""
        kernel, total, start = self._grouped(values.double()), 0.0, 0
        for h in self.moments:
            part = kernel[:, :, start : start + h.shape[-1]]
            total += float((part @ h * part).sum())
            start += h.shape[-1]
        return total

    def _grouped(self, values: Tensor) -> Tensor:
        return values.detach().cpu().reshape(len(self.moments[0]), -1, values[0].numel())


@dataclass(frozen=True)
class Weight:
    """A tensor to round.

    Attributes
    ----------
    name : str
        Its name.
    values : Tensor
        Floating point, not empty.
    log_step : float
        log2 of its step where the base of all steps is 1.
    response : Response or None
        What is known of its inputs.
    layer : str or None
        The layer that it is the weight of, and of no other, if its moments are whole.
    """

    name: str
    values: Tensor
    log_step: float
    response: Response | None = None
    layer: str | None = None

    def quantizer(self, base: float) -> StepQuantizer:
        """Return its quantizer where the log2 of the base of all steps is `base`."""
        least = float(self.values.detach().abs().max()) / _MOST_SYMBOLS
        return StepQuantizer.nearest(max(2.0 ** (base + self.log_step), least))

    def symbols(self, quantizer: StepQuantizer, price: float) -> Tensor:
        """Return its symbols, int32."""
        values = self.values.detach().cpu().double() / quantizer.step
        if self.response is None:
            return round_values(values, price)
        return self.response.round(values, price)

    def lost(self, rounded: Tensor) -> tuple[float, float]:
        """Return squared error and squared norm: of the responses if its inputs are known."""
        values = self.values.detach().cpu().double()
        measure = self._squared if self.response is None else self.response.energy
        return measure(rounded.double() - values), measure(values)

    @staticmethod
    def _squared(values: Tensor) -> float:
        return float(values.square().sum())


def plain_weights(tensors: Mapping[str, Tensor]) -> list[Weight]:
    """Return tensors to round at one step for all.

    At a given rate that is what makes the sum of squared errors least: a bit more for any of them
    takes away as much error as a bit more for any other.
    """
    return [Weight(name, values, 0.0) for name, values in tensors.items()]


def calibrated_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], batches: Sequence[Batch], seed: int
) -> list[Weight]:
    """Return tensors of a model to round by what batches of data say about its layers.

    Noise in a weight moves the model's outputs by its gradient and the layer's responses by their
    gain; the quotient g is what squared errors of responses count. A rounding error counts its
    pivot p in them, so that steps are as 1/√(g·p). A layer of which no gradient is seen, as models
    may run parts of themselves without gradients, has the mean log of g. A tensor that is no weight
    of a layer with known inputs has the mean step of the others, each relative to the root mean
    square of its values.

    Raises
    ------
    InvalidArgumentError
        If no layer is called on the batches.
    """
    moments = input_moments(model, batches, seed=seed)
    gradients = weight_gradients(model, batches, seed=seed)
    held_by = count_references(model)
    by_tensor = {id(model.get_submodule(n).get_parameter("weight")): n for n in moments}
    layers = {name: by_tensor.get(id(tensor)) for name, tensor in tensors.items()}
    known = {name: layer for name, layer in layers.items() if layer is not None}
    if not known:
        raise InvalidArgumentError("no Linear or convolution with a weight to round is called")
    responses = {name: Response.of(moments[layer]) for name, layer in known.items()}
    sensitivities = {
        name: gradients.get(layer, 0.0) / (responses[name].gain(tensors[name]) or 1.0)
        for name, layer in known.items()
    }
    seen = [value for value in sensitivities.values() if value > 0]
    unseen = fmean(map(log2, seen)) if seen else 0.0
    least = _LEAST_SENSITIVE * max(seen, default=1.0)
    found = {}
    for name, response in responses.items():
        sensitivity = sensitivities[name]
        log_sensitivity = log2(max(sensitivity, least)) if sensitivity else unseen
        log_step = -(log_sensitivity + response.log_pivot) / 2
        alone = held_by[id(tensors[name])] == 1 and len(response.moments) == 1
        found[name] = Weight(
            name, tensors[name], log_step, response, known[name] if alone else None
        )
    relative = mean_log_step(found.values())
    rest = {
        name: Weight(name, values, relative + log2(rms(values)))
        for name, values in tensors.items()
        if name not in found
    }
    return [found.get(name) or rest[name] for name in tensors]


def mean_log_step(weights: Collection[Weight]) -> float:
    """Return the mean log2 of steps relative to the root mean square of the values."""
    total = sum(w.values.numel() for w in weights)
    return sum(w.values.numel() * (w.log_step - log2(rms(w.values))) for w in weights) / total


def rms(values: Tensor) -> float:
    """Return the root mean square of a tensor's values, 1 where all are zero."""
    return sqrt(float(values.detach().double().square().mean())) or 1.0
