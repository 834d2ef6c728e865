"""What a plan is: per layer the scheme, the modes and the ranks; plain data that prints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from tensorpress.decompose.tucker import tucker_params
from tensorpress.ranks import check_ranks
from tensorpress.schemes.dimensions import Shape, by
from tensorpress.schemes.layer import LayerSpec
from tensorpress.schemes.registry import LAYER_SCHEMES
from tensorpress.schemes.registry import scheme as scheme_named

Core = Literal["own", "shared", "diagonal"]

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


@dataclass(frozen=True)
class LayerPlan:
    """How one layer's weight is stored: reshaped into ``modes``, a core of shape ``ranks``.

    ``core`` is "own", "shared" (one core for all layers that say so) or "diagonal" (CP).
    """

    name: str
    shape: Shape
    modes: Shape
    ranks: Shape
    core: Core = "own"

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
        core = prod(self.ranks) if self.core == "shared" else 0
        return tucker_params(self.modes, self.ranks) - core

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, without its name."""
        return {
            "scheme": self.scheme,
            "shape": list(self.shape),
            "modes": list(self.modes),
            "ranks": list(self.ranks),
            "core": self.core,
        }


@dataclass(frozen=True)
class SchemePlan:
    """How one layer is pressed by a scheme of `tensorpress.schemes.registry`.

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

    Examples
    --------
    >>> from torch import nn
    >>> from tensorpress.schemes.layer import describe
    >>> SchemePlan("fc", "channel_svd", describe(nn.Linear(30, 20)), (4,)).factor_params
    200
    """

    name: str
    scheme: str
    spec: LayerSpec
    ranks: Shape

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

    def check(self) -> None:
        """Raise an `InvalidArgumentError` unless the scheme takes such a layer at these ranks."""
        scheme = scheme_named(self.scheme)
        scheme.check(self.spec)
        check_ranks(self.ranks, scheme.largest_ranks(self.spec))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, without its name."""
        return {"scheme": self.scheme, "shape": list(self.shape), "ranks": list(self.ranks)}


PlannedLayer = LayerPlan | SchemePlan
"""How one layer is pressed: what both kinds tell is name, scheme, shape, ranks and parameters."""


@dataclass(frozen=True)
class Plan:
    """A scheme, its layers, and the layers that stay dense with the reason for each.

    A layer may have another scheme than the plan. ``other_params`` are the parameters that no
    scheme touches: biases, norms, dense layers.
    """

    scheme: str
    layers: tuple[PlannedLayer, ...]
    kept: Mapping[str, str] = field(default_factory=dict)
    other_params: int = 0

    @property
    def shared_core(self) -> Shape | None:
        """Shape of the core that layers share, None where each has its own."""
        return next((layer.ranks for layer in self.layers if _shares(layer)), None)

    @property
    def dense_params(self) -> int:
        """Parameters of the dense model."""
        return self.other_params + sum(layer.dense_params for layer in self.layers)

    @property
    def params(self) -> int:
        """Parameters of the pressed model: factors, a shared core once, and all others."""
        core = prod(self.shared_core) if self.shared_core else 0
        return self.other_params + core + sum(layer.factor_params for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data for JSON or YAML."""
        return {
            "scheme": self.scheme,
            "params": self.params,
            "dense_params": self.dense_params,
            "layers": {layer.name: layer.to_dict() for layer in self.layers},
            "kept": dict(self.kept),
        }

    def __str__(self) -> str:
        """Return the plan as a table of text."""
        rows: list[tuple[str, ...]] = [
            ("layer", "scheme", "weight", "modes", "ranks", "dense", "stored")
        ]
        rows += [_row(layer) for layer in self.layers]
        if self.shared_core:
            core = by(self.shared_core), "", f"{prod(self.shared_core):,}"
            rows.append(("(shared core)", "", "", "", *core))
        other = f"{self.other_params:,}"
        rows.append(("(not pressed)", "", "", "", "", other, other))
        rows.append(("total", "", "", "", "", f"{self.dense_params:,}", f"{self.params:,}"))
        lines = _aligned(rows)
        lines += [f"kept dense: {name} ({reason})" for name, reason in self.kept.items()]
        return "\n".join(lines)


def _shares(layer: PlannedLayer) -> bool:
    return isinstance(layer, LayerPlan) and layer.core == "shared"


def _row(layer: PlannedLayer) -> tuple[str, ...]:
    modes, core = "", ""
    if isinstance(layer, LayerPlan):
        modes = by(layer.modes)
        core = {"own": "", "shared": " shared", "diagonal": " diagonal"}[layer.core]
    return (
        *(layer.name, layer.scheme, by(layer.shape), modes, by(layer.ranks) + core),
        *(f"{layer.dense_params:,}", f"{layer.factor_params:,}"),
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the rows as lines, numbers to the right; a column of nothing but its name is out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if place >= len(widths) - 2 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in zip(*columns, strict=True)
    ]
