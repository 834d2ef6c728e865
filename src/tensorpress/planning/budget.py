"""The budget of a model: its kind and amount."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.measure.runtimes import Runtime

Kind = Literal["params", "bytes", "macs", "latency"]

_THOUSANDS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS: dict[str, dict[str, float]] = {
    "params": _THOUSANDS,
    "bytes": {"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    "macs": _THOUSANDS,
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
}
_AMOUNT = re.compile(r"(\d+(?:_?\d+)*(?:\.\d+)?(?:e\d+)?)\s*(%|[A-Za-z]*)")


@dataclass(frozen=True)
class Budget:
    """The most that a whole model may cost, including all that is not pressed.

    Attributes
    ----------
    kind : {"params", "bytes", "macs", "latency"}
        Stored parameters; bytes of parameters and buffers in memory; multiply-accumulates per
        example; milliseconds of a forward pass on the example inputs.
    amount : float
        Number of parameters, bytes, MACs or milliseconds, or a share of the dense model's.
    relative : bool
        Whether ``amount`` is a share.
    runtime : {"torch", "onnxruntime", "openvino"}
        Where a latency is measured.

    Examples
    --------
    >>> parse_budget("macs=50%").resolve(3_000_000)
    1500000.0
    """

    kind: Kind
    amount: float
    relative: bool = False
    runtime: Runtime = "torch"

    def resolve(self, dense: float) -> float:
        """Return the absolute amount for a dense model of this cost."""
        return self.amount * dense if self.relative else self.amount

    @property
    def percent_hint(self) -> str:
        """A hint for an unreachable budget that may lack a percent sign, else ""."""
        if self.relative or self.kind == "latency" or not 1 <= self.amount < 100:
            return ""
        return f"; did you mean {self.kind}={self.amount:g}%?"

    def __str__(self) -> str:
        """Return the budget as `parse_budget` reads it."""
        place = "" if self.runtime == "torch" else f"@{self.runtime}"
        if self.relative:
            return f"{self.kind}={100 * self.amount:g}%{place}"
        amount = f"{self.amount:.6f}".rstrip("0").rstrip(".")
        return f"{self.kind}={amount}" + ("ms" if self.kind == "latency" else "") + place


def parse_budget(text: str) -> Budget:
    """Read a budget of the form ``KIND=AMOUNT``, or ``latency=AMOUNT@RUNTIME``.

    Parameters
    ----------
    text : str
        ``params=50%``, ``params=1.5M``, ``bytes=10MB``, ``macs=300M``, ``latency=12ms``,
        ``latency=60%@onnxruntime``. Units are decimal (1 kB = 1000 bytes), and percentages are of
        the dense model.

    Raises
    ------
    InvalidArgumentError
        If the kind, unit, runtime or number is invalid, or the amount saves nothing.

    Examples
    --------
    >>> parse_budget("params=1.5M").amount, parse_budget("latency=60%@onnxruntime").runtime
    (1500000.0, 'onnxruntime')
    """
    kind, equals, amount = (part.strip() for part in str(text).partition("="))
    if not equals:
        raise InvalidArgumentError(
            f"a budget must be KIND=AMOUNT, such as macs=50% or bytes=10MB, not {text!r}"
        )
    known = get_args(Kind)
    if kind not in known:
        raise unknown_name("budget", kind, known)
    amount, at, runtime = (part.strip() for part in amount.partition("@"))
    if at and kind != "latency":
        raise InvalidArgumentError(f"budget {text!r}: only a latency depends on a runtime")
    runtimes = get_args(Runtime)
    if at and runtime not in runtimes:
        raise unknown_name("runtime", runtime, runtimes)
    match, units = _AMOUNT.fullmatch(amount), _UNITS[kind]
    spelling = {unit.lower(): unit for unit in ("%", *units)}
    unit = None if match is None else spelling.get(match[2].lower())
    if match is None or unit is None:
        names = ", ".join(filter(None, units))
        raise InvalidArgumentError(
            f"budget {text!r}: expected a number and one of the units %, {names}"
            + ("" if "" not in units else ", or none")
        )
    relative = unit == "%"
    value = float(match[1].replace("_", ""))
    value = value / 100 if relative else value * units[unit]
    if value <= 0 or (relative and value >= 1):
        raise InvalidArgumentError(
            f"budget {text!r}: expected "
            + ("more than 0 and less than 100 %" if relative else "a positive amount")
        )
    place: Runtime = runtimes[runtimes.index(runtime)] if at else "torch"
    return Budget(known[known.index(kind)], value, relative, place)
