"""What a plan is: per layer the scheme, the modes and the ranks; plain data that prints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from tensorpress.decompose.tucker import tucker_params
from tensorpress.schemes.dimensions import Shape, by

Core = Literal["own", "shared", "diagonal"]

SCHEMES: Mapping[str, str] = {
    "ada_tucker": "weights rebuilt from Tucker factors of their reshape, a core a layer "
    "(Zhong et al. 2019)",
    "scada_tucker": "the same with one core shared by all layers (Zhong et al. 2019, sec. 2.4)",
}
"""The schemes a plan can name, with what they are."""


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


@dataclass(frozen=True)
class Plan:
    """A scheme, its layers, and the layers that stay dense with the reason for each.

    ``other_params`` are the parameters that no scheme touches: biases, norms, dense layers.
    """

    scheme: str
    layers: tuple[LayerPlan, ...]
    kept: Mapping[str, str] = field(default_factory=dict)
    other_params: int = 0

    @property
    def shared_core(self) -> Shape | None:
        """Shape of the core that layers share, None where each has its own."""
        return next((layer.ranks for layer in self.layers if layer.core == "shared"), None)

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
            "layers": {
                layer.name: {
                    "shape": list(layer.shape),
                    "modes": list(layer.modes),
                    "ranks": list(layer.ranks),
                    "core": layer.core,
                }
                for layer in self.layers
            },
            "kept": dict(self.kept),
        }

    def __str__(self) -> str:
        """Return the plan as a table of text."""
        rows = [("layer", "weight", "modes", "core", "dense", "stored")]
        for layer in self.layers:
            core = (
                by(layer.ranks)
                + {"own": "", "shared": " shared", "diagonal": " diagonal"}[layer.core]
            )
            rows.append(
                (
                    layer.name,
                    by(layer.shape),
                    by(layer.modes),
                    core,
                    f"{layer.dense_params:,}",
                    f"{layer.factor_params:,}",
                )
            )
        if self.shared_core:
            rows.append(
                ("(shared core)", "", "", by(self.shared_core), "", f"{prod(self.shared_core):,}")
            )
        rows.append(
            ("(not pressed)", "", "", "", f"{self.other_params:,}", f"{self.other_params:,}")
        )
        rows.append(("total", "", "", "", f"{self.dense_params:,}", f"{self.params:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if i > 3 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines += [f"kept dense: {name} ({reason})" for name, reason in self.kept.items()]
        return "\n".join(lines)
