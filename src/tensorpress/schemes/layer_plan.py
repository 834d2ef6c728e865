"""The plan of one layer: its scheme, ranks and cost, as plain data."""

from dataclasses import dataclass, field
from math import prod

from tensorpress.schemes.layer_spec import Call, LayerSpec
from tensorpress.schemes.options import Options
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.reshape_modes import Shape
from tensorpress.schemes.scheme import Scheme
from tensorpress.schemes.stages import dense_macs
from tensorpress.utils.formatting import format_shape

FLOAT_BYTES = 4
"""Bytes of a parameter by default."""


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is pressed by a scheme of `tensorpress.schemes.registry`.

    Plans are equal if they press a layer equally: calls, error and itemsize are not compared.

    Attributes
    ----------
    name : str
        Name of the layer in its model.
    scheme : str
        Name of the scheme.
    spec : LayerSpec
        The dense layer, as `Scheme.describe` describes it.
    ranks : tuple of int
        Ranks, in the order of the scheme's paper.
    options : mapping
        Options of the scheme for this layer that are not at their defaults.
    calls : tuple of Call
        How an example calls the layer; empty if it does not, or if this is unknown.
    error : float or None
        Predicted ‖K − K̂‖ / ‖K‖ of the weight, None without a prediction.
    itemsize : int
        Bytes of a parameter.

    Examples
    --------
    >>> from torch import nn
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> spec = describe_layer(nn.Linear(30, 20))
    >>> layer = LayerPlan("fc", "channel_svd", spec, (4,), calls=(Call((1,)),))
    >>> layer.factor_params, layer.macs, layer.dense_macs
    (200, 200, 600)
    """

    name: str
    scheme: str
    spec: LayerSpec
    ranks: Shape
    options: Options = field(default_factory=dict, hash=False)
    calls: tuple[Call, ...] = field(default=(), compare=False)
    error: float | None = field(default=None, compare=False)
    itemsize: int = field(default=FLOAT_BYTES, compare=False)

    @property
    def method(self) -> Scheme:
        """The scheme with the options of this layer.

        Raises
        ------
        InvalidArgumentError
            If there is no such scheme, or it has no such options.
        """
        return scheme(self.scheme, self.options)

    @property
    def shape(self) -> Shape:
        """Shape of the dense weight."""
        return self.spec.weight_shape

    @property
    def modes(self) -> Shape:
        """Modes that the weight is reshaped into; () for schemes without this option."""
        return tuple(self.options.get("modes", ()))

    @property
    def dense_params(self) -> int:
        """Entries of the dense weight."""
        return prod(self.shape)

    @property
    def shared_params(self) -> int:
        """Parameters that replace the weight and are shared with other layers."""
        return self.method.shared_params(self.spec, self.ranks)

    @property
    def factor_params(self) -> int:
        """Parameters that replace the weight and belong to this layer alone, without the bias."""
        bias = self.spec.outputs * self.spec.bias
        return self.method.params(self.spec, self.ranks) - bias - self.shared_params

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the pressed layer's calls, for one example."""
        method = self.method
        return sum(c.times * method.macs(self.spec, self.ranks, c.sizes) for c in self.calls)

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the dense layer's calls, for one example."""
        return count_call_macs(self.spec, self.calls)

    def check(self) -> None:
        """Raise an `InvalidArgumentError` unless the scheme takes such a layer at these ranks."""
        method = self.method
        method.check(self.spec)
        method.check_ranks(self.spec, self.ranks)

    def format_ranks(self) -> str:
        """Return the ranks, and the options except modes, as text for tables."""
        options = {name: value for name, value in self.options.items() if name != "modes"}
        words = [n if v is True else f"{n} {_format(v)}" for n, v in options.items()]
        return " ".join([format_shape(self.ranks), *words])


def count_call_macs(spec: LayerSpec, calls: tuple[Call, ...]) -> int:
    """Return the multiply-accumulates of a dense layer's calls, for one example."""
    return sum(call.times * dense_macs(spec, call.sizes) for call in calls)


def _format(value: object) -> str:
    return format_shape(value) if isinstance(value, tuple) else str(value)
