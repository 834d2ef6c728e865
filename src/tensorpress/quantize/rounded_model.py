"""The rounded weights of a model or state dict: symbols, errors and the file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

from torch import Tensor

from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.codec.static_tables import entropy_bits
from tensorpress.quantize.rate_distortion import coded_bits
from tensorpress.quantize.weight_calibration import Weight


@dataclass(frozen=True)
class RoundedTensor:
    """Step, entropy and error of a tensor that was rounded.

    Attributes
    ----------
    name : str
        Name of the tensor.
    shape : tuple of int
        Shape of the tensor.
    step : float
        Distance between two levels.
    entropy : float
        Empirical entropy of its symbols, in bits per value.
    zeros : float
        Share of its values that became zero.
    error : float
        Relative root mean square error: of the layer's responses if calibration covers its inputs
        (after GPTAQ, those that the rounded layers before it produce), otherwise of the values.
    """

    name: str
    shape: tuple[int, ...]
    step: float
    entropy: float
    zeros: float
    error: float


@dataclass
class RoundedModel:
    """The symbols of all weights for one base of steps and one price of a bit.

    Attributes
    ----------
    weights : sequence of Weight
        The weights before rounding.
    base : float
        log2 of the base of all steps.
    price : float
        The price of a bit, in squared steps.
    quantizers : dict of str to StepQuantizer
        The quantizer of each weight.
    symbols : dict of str to Tensor
        The symbols of each weight, int32.
    squared_errors : dict of str to (float, float)
        Squared error and squared norm of each weight; see `Weight.squared_error`.
    data : bytes
        The file, after it was written.
    """

    weights: Sequence[Weight]
    base: float
    price: float
    quantizers: dict[str, StepQuantizer]
    symbols: dict[str, Tensor]
    squared_errors: dict[str, tuple[float, float]]
    data: bytes = b""

    @staticmethod
    def from_weights(weights: Sequence[Weight], base: float, price: float) -> "RoundedModel":
        """Round all weights.

        Parameters
        ----------
        weights : sequence of Weight
            The weights.
        base : float
            log2 of the base of all steps.
        price : float
            The price of a bit, in squared steps.
        """
        quantizers = {w.name: w.quantizer(base) for w in weights}
        symbols = {w.name: w.symbols(quantizers[w.name], price) for w in weights}
        rounded = RoundedModel(weights, base, price, quantizers, symbols, {})
        for w in weights:
            rounded.squared_errors[w.name] = w.squared_error(rounded.values(w))
        return rounded

    def values(self, weight: Weight) -> Tensor:
        """Return the rounded values of a weight."""
        symbols = self.symbols[weight.name]
        return self.quantizers[weight.name].values(symbols, weight.values.dtype)

    @cached_property
    def cost(self) -> float:
        """The estimated bytes of the symbols."""
        return sum(w.multiplicity * coded_bits(self.symbols[w.name]) for w in self.weights) / 8

    @property
    def error(self) -> float:
        """The relative error over all weights: see `tensorpress.quantize.encode.EncodeResult`."""
        pairs = list(self.squared_errors.values())
        if any(weight.inputs is not None for weight in self.weights):
            # The root mean square over weights of their relative errors.
            return sqrt(sum(error / (norm or 1.0) for error, norm in pairs) / max(len(pairs), 1))
        # The relative error of all values together.
        return sqrt(sum(error for error, _ in pairs) / (sum(norm for _, norm in pairs) or 1.0))

    def table(self) -> Iterable[RoundedTensor]:
        """Return step, entropy and error of each weight."""
        for w in self.weights:
            symbols, (error, norm) = self.symbols[w.name], self.squared_errors[w.name]
            yield RoundedTensor(
                w.name,
                tuple(symbols.shape),
                self.quantizers[w.name].step,
                entropy_bits(symbols),
                1 - float(symbols.count_nonzero()) / symbols.numel(),
                sqrt(error / (norm or 1.0)),
            )
