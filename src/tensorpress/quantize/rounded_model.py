"""All weights rounded at some steps: symbols, what is lost, and the file they make."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

from torch import Tensor

from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.quantize.rate_distortion import coded_bits, ideal_bits
from tensorpress.quantize.weight_calibration import Weight


@dataclass(frozen=True)
class RoundedTensor:
    """A tensor that was rounded.

    Attributes
    ----------
    name, shape
        As given.
    step : float
        Distance of two levels.
    entropy : float
        Empirical entropy of its symbols, in bits a value.
    zeros : float
        Share of its values that became zero.
    error : float
        Relative root mean square error: of the layer's responses if the encoder was calibrated and
        knows its inputs (where it was rounded in order, those that layers before it leave), else of
        the values.
    """

    name: str
    shape: tuple[int, ...]
    step: float
    entropy: float
    zeros: float
    error: float


@dataclass
class Attempt:
    """Symbols of all weights at some base and price.

    Attributes
    ----------
    weights : sequence of Weight
        What was rounded.
    base, price : float
        log2 of the base of all steps, and of a bit in squared steps.
    quantizers, symbols : dict
        By name.
    squares : dict
        Squared error and squared norm of each; see `Weight.lost`.
    data : bytes
        The file, once it was made.
    """

    weights: Sequence[Weight]
    base: float
    price: float
    quantizers: dict[str, StepQuantizer]
    symbols: dict[str, Tensor]
    squares: dict[str, tuple[float, float]]
    data: bytes = b""

    @staticmethod
    def at(weights: Sequence[Weight], base: float, price: float) -> "Attempt":
        """Round all weights."""
        quantizers = {w.name: w.quantizer(base) for w in weights}
        symbols = {w.name: w.symbols(quantizers[w.name], price) for w in weights}
        attempt = Attempt(weights, base, price, quantizers, symbols, {})
        for w in weights:
            attempt.squares[w.name] = w.lost(attempt.values(w))
        return attempt

    def values(self, weight: Weight) -> Tensor:
        """Return a weight's rounded values."""
        symbols = self.symbols[weight.name]
        return self.quantizers[weight.name].values(symbols, weight.values.dtype)

    @cached_property
    def cost(self) -> float:
        """About how many bytes the symbols take."""
        return sum(map(coded_bits, self.symbols.values())) / 8

    @property
    def error(self) -> float:
        """Relative error over all weights: see `tensorpress.quantize.encode.Encoded`."""
        pairs = list(self.squares.values())
        if any(weight.response is not None for weight in self.weights):
            return sqrt(sum(lost / (of or 1.0) for lost, of in pairs) / max(len(pairs), 1))
        return sqrt(sum(lost for lost, _ in pairs) / (sum(of for _, of in pairs) or 1.0))

    def table(self) -> Iterable[RoundedTensor]:
        """Return what became of each weight."""
        for w in self.weights:
            symbols, (lost, of) = self.symbols[w.name], self.squares[w.name]
            yield RoundedTensor(
                w.name,
                tuple(symbols.shape),
                self.quantizers[w.name].step,
                ideal_bits(symbols) / symbols.numel(),
                1 - float(symbols.count_nonzero()) / symbols.numel(),
                sqrt(lost / (of or 1.0)),
            )
