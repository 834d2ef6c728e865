"""The file format of a plan, checked by pydantic so that every error names the key."""

from dataclasses import MISSING, asdict, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    create_model,
    model_validator,
)

from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.measure.runtimes import Runtime
from tensorpress.schemes.layer_plan import FLOAT_BYTES, LayerPlan
from tensorpress.schemes.layer_spec import Call, LayerSpec, weight_spec
from tensorpress.schemes.registry import SCHEMES, scheme

FORMAT: Literal["tensorpress-plan 3"] = "tensorpress-plan 3"
"""The format that is written; older formats can be read."""

Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


def _known_scheme(name: str) -> str:
    if name not in SCHEMES:
        raise unknown_name("scheme", name, SCHEMES)
    return name


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _make_section(kind: type) -> Any:
    """Return the section whose keys are the fields of a dataclass."""
    hints = get_type_hints(kind)
    keys: dict[str, Any] = {
        field.name: (hints[field.name], ... if field.default is MISSING else field.default)
        for field in fields(kind)
    }
    return create_model(kind.__name__, __base__=_Section, **keys)


class LayerEntry(_Section):
    """A layer of a plan."""

    scheme: Annotated[str, AfterValidator(_known_scheme)]
    ranks: tuple[Size, ...]
    weight: _make_section(LayerSpec)  # type: ignore[valid-type]
    options: dict[str, Any] = {}
    calls: tuple[_make_section(Call), ...] = ()  # type: ignore[valid-type]
    error: float | None = None
    itemsize: Size = FLOAT_BYTES

    @model_validator(mode="before")
    @classmethod
    def _convert(cls, entry: Any) -> Any:
        """Convert the keys of Tucker weights in format 1 to spec and options."""
        if not isinstance(entry, dict) or not {"shape", "modes"} <= entry.keys():
            return entry
        rest = {key: value for key, value in entry.items() if key not in ("shape", "modes", "core")}
        core = entry.get("core", "own")
        flags = {core: True} if core in ("diagonal", "reduced") else {}
        spec = weight_spec(tuple(entry["shape"]))
        return rest | {"weight": _to_dict(spec), "options": {"modes": entry["modes"], **flags}}

    def to_layer_plan(self, name: str) -> LayerPlan:
        """Return the plan of the layer.

        Raises
        ------
        InvalidArgumentError
            If options or ranks do not fit the layer, which the message names.
        """
        spec = LayerSpec(**self.weight.model_dump())
        calls = tuple(Call(**call.model_dump()) for call in self.calls)
        try:
            options = scheme(self.scheme, self.options).options
            layer = LayerPlan(
                *(name, self.scheme, spec, self.ranks, options, calls, self.error, self.itemsize)
            )
            layer.check()
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"layer {name!r}: {error}") from None
        return layer


class OtherCosts(_Section):
    """Costs outside the pressed layers."""

    params: Count = 0
    bytes: Count = 0
    macs: Count | None = None


class LatencyEntry(_Section):
    """The times, for a latency budget."""

    dense: float
    predicted: float
    reached: float
    runtime: Runtime = "torch"


class PlanFile(_Section):
    """A whole plan; the id and the totals are ignored and computed from the layers."""

    format: Literal["tensorpress-plan 1", "tensorpress-plan 2", "tensorpress-plan 3"] = FORMAT
    layers: dict[str, LayerEntry]
    unpressed: dict[str, str] = Field({}, validation_alias=AliasChoices("unpressed", "kept"))
    other: OtherCosts = OtherCosts()
    scheme: str = ""
    id: str = ""
    params: Count = 0
    dense_params: Count = 0
    macs: Count | None = None
    dense_macs: Count | None = None
    latency_ms: LatencyEntry | None = None


def layer_to_dict(layer: LayerPlan, *, costs: bool = True) -> dict[str, Any]:
    """Return a layer's plan as plain data, without its name.

    Parameters
    ----------
    layer : LayerPlan
        The layer.
    costs : bool
        Whether to include calls, predicted error and itemsize, which do not change the pressed
        layer.

    Examples
    --------
    >>> layer = LayerPlan("fc", "channel_svd", LayerSpec("Linear", 30, 20), (4,))
    >>> layer_to_dict(layer)["weight"]
    {'kind': 'Linear', 'inputs': 30, 'outputs': 20}
    """
    content: dict[str, Any] = {
        "scheme": layer.scheme,
        "ranks": list(layer.ranks),
        "weight": _to_dict(layer.spec),
    }
    if layer.options:
        content["options"] = {name: _plain(value) for name, value in layer.options.items()}
    if costs and layer.calls:
        content["calls"] = [_to_dict(call) for call in layer.calls]
    if costs and layer.error is not None:
        content["error"] = layer.error
    if costs and layer.itemsize != FLOAT_BYTES:
        content["itemsize"] = layer.itemsize
    return content


def _to_dict(data: Any) -> dict[str, Any]:
    """Return a dataclass as plain data without default values."""
    defaults = {field.name: field.default for field in fields(data)}
    return {key: _plain(value) for key, value in asdict(data).items() if value != defaults[key]}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
