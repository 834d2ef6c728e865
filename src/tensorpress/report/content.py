"""The content of a report: plain numbers and strings that are stored as JSON."""

import json
import math
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tensorpress.errors import CorruptFileError, InvalidArgumentError


class _Strict:
    """A base class that rejects unknown keys when a report is read."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class LayerRow(_Strict):
    """A layer of a network before and after pressing.

    Attributes
    ----------
    name : str
        Qualified name of the module.
    kind : str
        Class of the module, for instance ``"Conv2d"``.
    scheme : str
        Scheme of the layer, for instance ``"ada-tucker"``, or ``"dense"``.
    dense_shape : tuple of int
        Shape of the dense weight.
    modes : tuple of int
        Shape of the decomposed tensor; empty for a dense layer.
    ranks : tuple of int
        Ranks in the order of the scheme's paper; empty for a dense layer.
    dense_params, pressed_params : int
        Number of weights before and after pressing, without biases.
    file_bytes : float or None
        Bytes of these weights in the file, which may be a fraction because the entropy coder shares
        bytes between layers; None without a file.
    bits_per_weight : float or None
        Bits of the file per pressed weight; None without a file.
    error : float or None
        Relative error ‖W − Ŵ‖ / ‖W‖ of the decomposition before training; None if the factors were
        initialized at random.
    note : str
        A remark, for instance why the layer is dense.

    Examples
    --------
    >>> LayerRow("ip1", "Linear", "svd", (500, 800), (500, 800), (10,), 400_000, 13_000).ratio
    30.76923076923077
    """

    name: str
    kind: str
    scheme: str
    dense_shape: tuple[int, ...]
    modes: tuple[int, ...]
    ranks: tuple[int, ...]
    dense_params: int
    pressed_params: int
    file_bytes: float | None = None
    bits_per_weight: float | None = None
    error: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Dense over pressed parameters of this layer; None if nothing is stored."""
        return self.dense_params / self.pressed_params if self.pressed_params else None


@dataclass(frozen=True)
class Histogram(_Strict):
    """A histogram of a layer's stored weights before and after quantization.

    Attributes
    ----------
    layer : str
        Name of the layer.
    edges : list of float
        The n + 1 increasing edges of the n bins.
    before, after : list of int
        Number of weights in each bin.

    Raises
    ------
    InvalidArgumentError
        If the counts do not fit the edges.

    Examples
    --------
    >>> Histogram("conv1", [-1.0, 0.0, 1.0], before=[3, 5], after=[4, 4]).layer
    'conv1'
    """

    layer: str
    edges: list[float]
    before: list[int]
    after: list[int]

    def __post_init__(self) -> None:
        if not len(self.edges) - 1 == len(self.before) == len(self.after):
            raise InvalidArgumentError(
                f"histogram of {self.layer!r}: {len(self.edges)} edges need "
                f"{max(len(self.edges) - 1, 0)} counts before and after, "
                f"got {len(self.before)} and {len(self.after)}"
            )


@dataclass(frozen=True)
class Curve(_Strict):
    """A quantity over the epochs of a phase.

    Attributes
    ----------
    name : str
        The phase, for instance ``"train"`` or ``"quantized"``.
    epochs : list of int
        Epoch of each value.
    values : list of float or None
        The value of each epoch; None, NaN and infinite values leave a gap.

    Raises
    ------
    InvalidArgumentError
        If the numbers of values and epochs differ.

    Examples
    --------
    >>> Curve("train", epochs=[1, 2], values=[0.7, 0.4]).values
    [0.7, 0.4]
    """

    name: str
    epochs: list[int]
    values: list[float | None]

    def __post_init__(self) -> None:
        if len(self.epochs) != len(self.values):
            raise InvalidArgumentError(
                f"curve {self.name!r}: expected one value for each of its "
                f"{len(self.epochs)} epochs, got {len(self.values)}"
            )


@dataclass(frozen=True)
class Curves(_Strict):
    """Curves in one plot: the same quantity in each phase.

    Attributes
    ----------
    title : str
        The quantity, for instance ``"Validation error"``.
    unit : str
        Its unit, for instance ``"%"``; empty if it has none.
    curves : list of Curve
        The phases in the order of the run.

    Examples
    --------
    >>> Curves("Validation error", "%", [Curve("train", [1], [2.5])]).unit
    '%'
    """

    title: str
    unit: str
    curves: list[Curve]


@dataclass(frozen=True)
class FilePart(_Strict):
    """A part of the compressed file and its bytes.

    Examples
    --------
    >>> FilePart("header", 96.0).bytes
    96.0
    """

    name: str
    bytes: float


@dataclass(frozen=True)
class ReportContent(_Strict):
    """The content of a report.

    Attributes
    ----------
    title, subtitle : str
        Heading of the page and the sentence below it.
    metrics : dict
        Content of ``metrics.json``: nested dictionaries of plain numbers and strings. Keys that are
        missing or None are shown as "–".
    layers : list of LayerRow
        Rows of the table of layers.
    histograms : list of Histogram
        Histograms of weights.
    curves : list of Curves
        Plots over the epochs.
    file_parts : list of FilePart
        Parts of the file. Plots without data are left out.
    recipe_yaml : str
        The recipe as text.

    Examples
    --------
    >>> content = ReportContent("LeNet-5", metrics={"file": {"bytes": 2104}})
    >>> ReportContent.from_json(content.to_json()) == content
    True
    """

    title: str
    subtitle: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    layers: list[LayerRow] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    curves: list[Curves] = field(default_factory=list)
    file_parts: list[FilePart] = field(default_factory=list)
    recipe_yaml: str = ""

    def to_json(self) -> str:
        """Return the content as standard JSON; NaN and infinite numbers become null."""
        return json.dumps(_finite(asdict(self)), allow_nan=False, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "ReportContent":
        """Return a content from the JSON text of `to_json`.

        Raises
        ------
        CorruptFileError
            If the text is not JSON, or a key is missing, unknown or of the wrong type.
        """
        try:
            return _adapter().validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise CorruptFileError(
                "the text is not the content of a report: "
                f"{f'{where}: ' if where else ''}{first['msg']}"
            ) from error


@cache
def _adapter() -> TypeAdapter[ReportContent]:
    return TypeAdapter(ReportContent)


def _finite(value: Any) -> Any:
    """Return nested data with None instead of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
