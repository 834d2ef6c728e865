"""How one layer is pressed: its scheme, its ranks, and what that costs; plain data."""

from dataclasses import dataclass, field
from math import prod

from tensorpress.schemes.base import Scheme
from tensorpress.schemes.layer_spec import Call, LayerSpec
from tensorpress.schemes.parametrization import Options
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.reshape_modes import Shape
from tensorpress.schemes.stages import dense_stage, macs
from tensorpress.utils.formatting import format_shape

FLOAT_BYTES = 4
"""Of a parameter where nothing else is said."""


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is pressed by a scheme of `tensorpress.schemes.registry`.

    Two plans of a layer are equal where they make the same of it, whatever is known about it.

    Attributes
    ----------
    name : str
        Of the layer.
    scheme : str
        Of the registry.
    spec : LayerSpec
        The dense layer, as `Scheme.describe` describes it.
    ranks : tuple of int
        In the order of the scheme's paper.
    options : mapping
        Options of the scheme for this layer, where they are not at their defaults.
    calls : tuple of Call
        How an example calls it; empty where it is not called, or nobody looked.
    error : float or None
        ‖K − K̂‖ / ‖K‖ of its weight, where it was predicted.
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
        """The scheme with the options.

        Raises
        ------
        InvalidArgumentError
            Where there is no such scheme, or it has no such options.
        """
        return scheme(self.scheme, self.options)

    @property
    def shape(self) -> Shape:
        """Shape of the dense weight."""
        return self.spec.weight_shape

    @property
    def modes(self) -> Shape:
        """Sizes that the weight is reshaped into, where the plan says some."""
        return tuple(self.options.get("modes", ()))

    @property
    def dense_params(self) -> int:
        """Entries of the dense weight."""
        return prod(self.shape)

    @property
    def shared_params(self) -> int:
        """Values stored in the place of the weight that other layers hold as well."""
        return self.method.shared_params(self.spec, self.ranks)

    @property
    def factor_params(self) -> int:
        """Values stored in the place of the weight for this layer alone; no bias is counted."""
        bias = self.spec.outputs * self.spec.bias
        return self.method.params(self.spec, self.ranks) - bias - self.shared_params

    @property
    def macs(self) -> int:
        """Multiply-accumulates of its calls, for one example."""
        method = self.method
        return sum(c.times * method.macs(self.spec, self.ranks, c.sizes) for c in self.calls)

    @property
    def dense_macs(self) -> int:
        """Those of the dense layer."""
        return count_call_macs(self.spec, self.calls)

    def check(self) -> None:
        """Raise an `InvalidArgumentError` unless the scheme takes such a layer at these ranks."""
        method = self.method
        method.check(self.spec)
        method.check_ranks(self.spec, self.ranks)

    def format_ranks(self) -> str:
        """Return the ranks, and the options but modes, as tables print them."""
        options = {name: value for name, value in self.options.items() if name != "modes"}
        told = [n if v is True else f"{n} {_format(v)}" for n, v in options.items()]
        return " ".join([format_shape(self.ranks), *told])


def count_call_macs(spec: LayerSpec, calls: tuple[Call, ...]) -> int:
    """Return the multiply-accumulates of a dense layer's calls, for one example."""
    return sum(call.times * macs(spec, [dense_stage(spec)], call.sizes) for call in calls)


def _format(value: object) -> str:
    return format_shape(value) if isinstance(value, tuple) else str(value)
