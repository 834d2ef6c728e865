"""How one layer is pressed: its scheme, its ranks, and what that costs; plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from tensorpress.decompose.tucker import tucker_params
from tensorpress.measure.layer_calls import Call
from tensorpress.ranks import check_ranks
from tensorpress.schemes.layer_spec import LayerSpec
from tensorpress.schemes.registry import LAYER_SCHEMES
from tensorpress.schemes.registry import scheme as scheme_named
from tensorpress.schemes.reshape_modes import Shape
from tensorpress.schemes.stages import dense_stage, macs
from tensorpress.schemes.tucker_weight import TuckerWeight

Core = Literal["own", "shared", "diagonal", "reduced"]

TUCKER_SCHEMES: Mapping[str, str] = {
    "ada_tucker": "weights rebuilt from Tucker factors of their reshape, a core a layer "
    "(Zhong et al. 2019)",
    "scada_tucker": "the same with one core shared by all layers (Zhong et al. 2019, sec. 2.4)",
}
"""The schemes that reshape weights into modes, with what they are."""

SCHEMES: Mapping[str, str] = {
    **TUCKER_SCHEMES,
    **{name: scheme.summary for name, scheme in LAYER_SCHEMES.items()},
}
"""All schemes a plan can name, with what they are."""

FLOAT_BYTES = 4
"""Of a parameter where nothing else is said."""


@dataclass(frozen=True)
class LayerPlan:
    """How one layer's weight is stored: reshaped into ``modes``, a core of shape ``ranks``.

    ``core`` is "own", "shared" (one core for all layers that say so), "diagonal" (CP) or "reduced"
    (its own, without the freedom of its bases); ``itemsize`` are the bytes of a parameter.
    """

    name: str
    shape: Shape
    modes: Shape
    ranks: Shape
    core: Core = "own"
    itemsize: int = field(default=FLOAT_BYTES, compare=False)

    @property
    def scheme(self) -> str:
        """Name of the scheme."""
        return "scada_tucker" if self.core == "shared" else "ada_tucker"

    @property
    def dense_params(self) -> int:
        """Entries of the dense weight."""
        return prod(self.shape)

    @property
    def factor_params(self) -> int:
        """Values stored for this layer alone: without a shared core."""
        if self.core == "diagonal":
            return self.ranks[0] * (1 + sum(self.modes))
        elsewhere = prod(self.ranks) if self.core == "shared" else 0
        fixed = sum(k * k for k in self.ranks) if self.core == "reduced" else 0
        return tucker_params(self.modes, self.ranks) - elsewhere - fixed

    def parametrization(self) -> TuckerWeight:
        """Return what rebuilds the weight.

        Raises
        ------
        InvalidArgumentError
            If modes, ranks and core do not fit the weight or each other.
        """
        return TuckerWeight(
            self.shape,
            self.modes,
            self.ranks,
            diagonal=self.core == "diagonal",
            shared=self.core == "shared",
            reduced=self.core == "reduced",
        )


@dataclass(frozen=True)
class SchemePlan:
    """How one layer is pressed by a scheme of `tensorpress.schemes.registry`.

    Two plans of a layer are equal where they make the same of it, whatever is known about it.

    Attributes
    ----------
    name : str
        Of the layer.
    scheme : str
        Of the registry.
    spec : LayerSpec
        The dense layer.
    ranks : tuple of int
        In the order of the scheme's paper.
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
    >>> layer = SchemePlan("fc", "channel_svd", spec, (4,), (Call((1,)),))
    >>> layer.factor_params, layer.macs, layer.dense_macs
    (200, 200, 600)
    """

    name: str
    scheme: str
    spec: LayerSpec
    ranks: Shape
    calls: tuple[Call, ...] = field(default=(), compare=False)
    error: float | None = field(default=None, compare=False)
    itemsize: int = field(default=FLOAT_BYTES, compare=False)

    @property
    def shape(self) -> Shape:
        """Shape of the dense weight."""
        return self.spec.weight_shape

    @property
    def dense_params(self) -> int:
        """Entries of the dense weight."""
        return prod(self.shape)

    @property
    def factor_params(self) -> int:
        """Values stored in the place of the weight: the bias is not counted."""
        bias = self.spec.outputs * self.spec.bias
        return scheme_named(self.scheme).params(self.spec, self.ranks) - bias

    @property
    def macs(self) -> int:
        """Multiply-accumulates of its calls, for one example."""
        scheme = scheme_named(self.scheme)
        return sum(c.times * scheme.macs(self.spec, self.ranks, c.sizes) for c in self.calls)

    @property
    def dense_macs(self) -> int:
        """Those of the dense layer."""
        return count_call_macs(self.spec, self.calls)

    def check(self) -> None:
        """Raise an `InvalidArgumentError` unless the scheme takes such a layer at these ranks."""
        scheme = scheme_named(self.scheme)
        scheme.check(self.spec)
        check_ranks(self.ranks, scheme.largest_ranks(self.spec))


def count_call_macs(spec: LayerSpec, calls: tuple[Call, ...]) -> int:
    """Return the multiply-accumulates of a dense layer's calls, for one example."""
    return sum(call.times * macs(spec, [dense_stage(spec)], call.sizes) for call in calls)


PlannedLayer = LayerPlan | SchemePlan
"""How one layer is pressed: what both kinds tell is name, scheme, shape, ranks and parameters."""
