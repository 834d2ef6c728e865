"""What a plan's file says about a layer, checked by pydantic; every error names the key."""

from dataclasses import MISSING, asdict, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.measure.layer_calls import Call
from tensorpress.schemes.layer_plan import (
    FLOAT_BYTES,
    SCHEMES,
    TUCKER_SCHEMES,
    Core,
    LayerPlan,
    PlannedLayer,
    SchemePlan,
)
from tensorpress.schemes.layer_spec import LayerSpec

FORMAT: Literal["tensorpress-plan 1"] = "tensorpress-plan 1"
"""First line of a plan's file."""

Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


def _known_scheme(name: str) -> str:
    if name not in SCHEMES:
        raise unknown_name("scheme", name, SCHEMES)
    return name


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _like(kind: type) -> Any:
    """Return the section whose keys are the fields of a dataclass."""
    hints = get_type_hints(kind)
    keys: dict[str, Any] = {
        field.name: (hints[field.name], ... if field.default is MISSING else field.default)
        for field in fields(kind)
    }
    return create_model(kind.__name__, __base__=_Section, **keys)


class LayerEntry(_Section):
    """A layer of a plan: of a scheme of the registry (``weight``), or of Tucker factors."""

    scheme: Annotated[str, AfterValidator(_known_scheme)]
    ranks: tuple[Size, ...]
    weight: _like(LayerSpec) | None = None  # type: ignore[valid-type]
    calls: tuple[_like(Call), ...] = ()  # type: ignore[valid-type]
    error: float | None = None
    shape: tuple[Size, ...] | None = None
    modes: tuple[Size, ...] | None = None
    core: Core = "own"
    itemsize: Size = FLOAT_BYTES

    def named(self, name: str) -> PlannedLayer:
        """Return the plan of the layer.

        Raises
        ------
        InvalidArgumentError
            Where a key is missing, or the ranks do not fit the layer.
        """
        if self.scheme in TUCKER_SCHEMES:
            if self.shape is None or self.modes is None:
                raise InvalidArgumentError(f"layer {name!r}: {self.scheme} needs shape and modes")
            return LayerPlan(name, self.shape, self.modes, self.ranks, self.core, self.itemsize)
        if self.weight is None:
            raise InvalidArgumentError(f"layer {name!r}: {self.scheme} needs weight")
        spec = LayerSpec(**self.weight.model_dump())
        calls = tuple(Call(**call.model_dump()) for call in self.calls)
        return SchemePlan(name, self.scheme, spec, self.ranks, calls, self.error, self.itemsize)


class Others(_Section):
    """What no scheme touches."""

    params: Count = 0
    bytes: Count = 0
    macs: Count | None = None


class PlanFile(_Section):
    """A whole plan; what follows from its layers is not looked at."""

    format: Literal["tensorpress-plan 1"] = FORMAT
    layers: dict[str, LayerEntry]
    kept: dict[str, str] = {}
    other: Others = Others()
    scheme: str = ""
    id: str = ""
    params: Count = 0
    dense_params: Count = 0
    macs: Count | None = None
    dense_macs: Count | None = None


def layer_to_dict(layer: PlannedLayer, *, known: bool = True) -> dict[str, Any]:
    """Return a layer's plan as plain data, without its name.

    Parameters
    ----------
    layer : LayerPlan or SchemePlan
        The layer.
    known : bool
        Whether to tell what does not change what is done: calls, predicted error, bytes.

    Examples
    --------
    >>> layer_to_dict(LayerPlan("fc", (20, 30), (20, 30), (4, 5)))["modes"]
    [20, 30]
    """
    if isinstance(layer, LayerPlan):
        sizes = {key: list(getattr(layer, key)) for key in ("shape", "modes", "ranks")}
        found: dict[str, Any] = {"scheme": layer.scheme, **sizes, "core": layer.core}
    else:
        found = {
            "scheme": layer.scheme,
            "ranks": list(layer.ranks),
            "weight": _told(layer.spec),
        }
        if known and layer.calls:
            found["calls"] = [_told(call) for call in layer.calls]
        if known and layer.error is not None:
            found["error"] = layer.error
    if known and layer.itemsize != FLOAT_BYTES:
        found["itemsize"] = layer.itemsize
    return found


def check_layer(layer: PlannedLayer) -> None:
    """Raise an `InvalidArgumentError` naming the layer unless its ranks fit it."""
    try:
        if isinstance(layer, SchemePlan):
            layer.check()
        else:
            layer.parametrization()
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None


def _told(data: Any) -> dict[str, Any]:
    """Return a dataclass as plain data, without what is at its default."""
    defaults = {field.name: field.default for field in fields(data)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(data).items()
        if value != defaults[key]
    }
