"""The plan of a model: the layers to press, and the others with the reason for each."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.runtimes import Runtime
from tensorpress.planning.plan_file import FORMAT, PlanFile, layer_to_dict
from tensorpress.planning.plan_table import VECTOR, Sums, format_unpressed, layer_table
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.reshape_modes import Shape
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.config_parsing import parse_json, parse_yaml, validate
from tensorpress.utils.formatting import format_shape
from tensorpress.utils.paths import read_file


@dataclass(frozen=True)
class PlannedLatency:
    """The times of a forward pass in milliseconds, for a latency budget.

    Attributes
    ----------
    dense : float
        Measured for the dense model.
    predicted : float
        The sum of the times of the plan's layers, measured one by one, and of the rest.
    reached : float
        Measured for a model pressed by the plan, with random values.
    runtime : {"torch", "onnxruntime", "openvino"}
        Where the times were measured.
    """

    dense: float
    predicted: float
    reached: float
    runtime: Runtime = "torch"

    @property
    def text(self) -> str:
        """The times as a line of text."""
        return (
            f"latency in {self.runtime}: {self.dense:.2f} ms dense, "
            f"{self.predicted:.2f} ms predicted, {self.reached:.2f} ms reached by the pressed model"
        )


@dataclass(frozen=True, repr=False)
class Plan:
    """The layers of a model to press, and those that stay dense with the reason for each.

    A plan can be written to a file and applied on another machine.

    Attributes
    ----------
    scheme : str
        The scheme or schemes passed to `tensorpress.plan`; each layer has its own in addition.
    layers : tuple of LayerPlan
        The layers that are pressed, in the order of the model.
    unpressed : mapping of str to str
        The layers and other floating-point parameters that stay dense, with the reason.
    other_params, other_bytes : int
        Parameters and bytes outside the pressed weights: biases, norms, buffers (bytes only), dense
        layers.
    other_macs : int or None
        Multiply-accumulates outside the pressed layers, for one example; None without inputs.
    latency : PlannedLatency or None
        The times, for a latency budget; None for other plans.

    Examples
    --------
    >>> from torch import nn
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> layer = LayerPlan("fc", "channel_svd", describe_layer(nn.Linear(30, 20)), (4,))
    >>> plan = Plan("channel_svd", (layer,), other_params=20)
    >>> plan.dense_params, plan.params, plan.macs
    (620, 220, None)
    """

    scheme: str
    layers: tuple[LayerPlan, ...]
    unpressed: Mapping[str, str] = field(default_factory=dict)
    other_params: int = 0
    other_bytes: int = 0
    other_macs: int | None = None
    latency: PlannedLatency | None = None

    @property
    def shared_core(self) -> Shape | None:
        """Shape of the core that layers share, or None."""
        return next((layer.ranks for layer in self._core_layers), None)

    @property
    def unpressed_weights(self) -> dict[str, str]:
        """The layers that stay dense, with the reason; vectors such as biases are left out."""
        return {name: reason for name, reason in self.unpressed.items() if reason != VECTOR}

    @property
    def dense_params(self) -> int:
        """Parameters of the dense model."""
        return self.other_params + sum(layer.dense_params for layer in self.layers)

    @property
    def params(self) -> int:
        """Parameters of the pressed model; a shared core is counted once."""
        shared = sum(layer.shared_params for layer in self._core_layers)
        return self.other_params + shared + sum(layer.factor_params for layer in self.layers)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense model's parameters and buffers."""
        return self.other_bytes + sum(x.itemsize * x.dense_params for x in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes of the pressed model's parameters and buffers."""
        shared = sum(x.itemsize * x.shared_params for x in self._core_layers)
        return self.other_bytes + shared + sum(x.itemsize * x.factor_params for x in self.layers)

    @property
    def dense_macs(self) -> int | None:
        """Multiply-accumulates of the dense model for one example; None without inputs."""
        return self._add_other_macs([layer.dense_macs for layer in self.layers])

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of the pressed model for one example; None without inputs."""
        return self._add_other_macs([layer.macs for layer in self.layers])

    @property
    def _core_layers(self) -> list[LayerPlan]:
        """Return the first layer of each scheme whose layers share a core."""
        first = {layer.scheme: layer for layer in reversed(self.layers) if layer.shared_params}
        return list(first.values())

    def _add_other_macs(self, macs: list[int]) -> int | None:
        return None if self.other_macs is None else self.other_macs + sum(macs)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that identify how layers are pressed, equal on all machines."""
        layers = {layer.name: layer_to_dict(layer, costs=False) for layer in self.layers}
        text = json.dumps(layers, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data for JSON or YAML; `from_dict` reads it."""
        macs = {} if self.macs is None else {"macs": self.macs, "dense_macs": self.dense_macs}
        others = {"params": self.other_params, "bytes": self.other_bytes, "macs": self.other_macs}
        return {
            "format": FORMAT,
            "id": self.id,
            "scheme": self.scheme,
            "params": self.params,
            "dense_params": self.dense_params,
            **macs,
            **({} if self.latency is None else {"latency_ms": asdict(self.latency)}),
            "other": {key: value for key, value in others.items() if value is not None},
            "layers": {layer.name: layer_to_dict(layer) for layer in self.layers},
            "unpressed": dict(self.unpressed),
        }

    @staticmethod
    def from_dict(content: Any) -> "Plan":
        """Return the plan for the data of `to_dict`.

        A plan written by hand needs only ``layers``; totals are recomputed.

        Raises
        ------
        InvalidArgumentError
            If a key is missing, unknown or has an invalid value; the message names it.
        """
        file = validate(PlanFile, content, "plan")
        layers = tuple(layer.to_layer_plan(name) for name, layer in file.layers.items())
        other = file.other
        times = file.latency_ms
        latency = None if times is None else PlannedLatency(**times.model_dump())
        return Plan(
            file.scheme, layers, file.unpressed, other.params, other.bytes, other.macs, latency
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file: JSON if its name ends with ``.json``, YAML otherwise."""
        content = self.to_dict()
        if Path(path).suffix == ".json":
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        else:
            text = yaml.safe_dump(
                content, sort_keys=False, allow_unicode=True, default_flow_style=None
            )
        write_atomically(path, text.encode())

    @staticmethod
    def read(path: str | os.PathLike[str]) -> "Plan":
        """Read a plan from a JSON or YAML file.

        Raises
        ------
        DataNotFoundError
            If the file does not exist.
        InvalidArgumentError
            If the file is not a valid plan; the message names the file and the key.
        """
        content = read_file(path, "plan")
        try:
            parse = parse_json if Path(path).suffix == ".json" else parse_yaml
            return Plan.from_dict(parse(content))
        except ValueError as error:
            raise InvalidArgumentError(f"{os.fspath(path)}: {error}") from None

    def __repr__(self) -> str:
        """Return the number of layers and the parameters before and after."""
        return (
            f"<Plan {self.id}: {len(self.layers)} layers by {self.scheme}, "
            f"{self.dense_params:,} parameters become {self.params:,}>"
        )

    def __str__(self) -> str:
        """Return the plan as a table of text."""
        sums = [
            Sums("(not pressed)", *(self.other_params,) * 2, *(self.other_macs,) * 2),
            Sums("total", self.dense_params, self.params, self.dense_macs, self.macs),
        ]
        if self.shared_core:
            core = f"(shared core {format_shape(self.shared_core)})"
            shared = sum(layer.shared_params for layer in self._core_layers)
            sums.insert(0, Sums(core, None, shared, None, None))
        lines = [*layer_table(self.layers, sums), *format_unpressed(self.unpressed_weights)]
        if self.latency is not None:
            lines.append(self.latency.text)
        return "\n".join(lines)
