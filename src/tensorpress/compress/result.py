"""The result of `compress`: the model, its costs and fidelity, and all trials."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tensorpress.compress.verdict import Fidelity
from tensorpress.planning.plan import Plan, PlannedLatency
from tensorpress.schemes.layer_plan import LayerPlan


@dataclass(frozen=True, repr=False)
class Trial:
    """One method of meeting the budget, tried and measured.

    Attributes
    ----------
    name : str
        The criterion for ranks, and whether the model is coded.
    plan : Plan or None
        The layers that are pressed; None if the model is only coded.
    fidelity : Fidelity or None
        Fidelity on the held-out inputs that choose; None without data or after a failure.
    estimate : float or None
        The predicted error of the outputs, in the unit of `Fidelity.error`; None if unknown.
    seconds : float
        Time of planning, pressing and measuring.
    failure : str or None
        Why this method could not meet the budget.
    note : str or None
        Why it was not chosen, if the numbers do not show it.
    """

    name: str
    plan: Plan | None
    fidelity: Fidelity | None
    estimate: float | None = None
    seconds: float = 0.0
    failure: str | None = None
    note: str | None = None

    @property
    def summary(self) -> str:
        """The outcome in one line."""
        if self.fidelity is not None:
            note = "" if self.note is None else f"; {self.note}"
            return f"{self.name}: {self.fidelity.verdict}{note} ({self.seconds:.0f} s)"
        return f"{self.name}: {self.failure or 'outputs were not compared'}"

    def __repr__(self) -> str:
        """Return the outcome."""
        return f"<Trial {self.summary}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as plain data for JSON, with its plan's id."""
        return {
            "name": self.name,
            "plan": None if self.plan is None else self.plan.id,
            "fidelity": None if self.fidelity is None else self.fidelity.to_dict(),
            "estimate": finite(self.estimate),
            "seconds": round(self.seconds, 2),
            "failure": self.failure,
            "note": self.note,
        }


@dataclass(frozen=True, repr=False)
class CompressResult:
    """A compressed model with its costs, its fidelity and all trials.

    Attributes
    ----------
    model : nn.Module
        The compressed model. For a budget of bytes it has the values of its file.
    budget : str
        The budget.
    trial : Trial
        The trial that was chosen.
    trials : tuple of Trial
        All trials.
    costs : mapping of str to tuple of float
        The cost of the dense and of the compressed model: params, bytes (of the file for a budget
        of bytes, else in memory), and with inputs macs and latency_ms.
    fidelity : Fidelity or None
        Fidelity on held-out inputs, which also chose the trial only if there are few of them.
    before : Fidelity or None
        Fidelity of the same plan without fitting to data.
    metric : tuple of float or None
        The results of ``evaluate`` for the dense and the compressed model.
    file : Path or None
        The `.tpz` file that was written.
    warnings : tuple of str
        Warnings for the user, such as missing data.
    seconds : float
        Total time.
    advice : tuple of str
        What to try if the outputs are too far from the dense model's.
    """

    model: nn.Module
    budget: str
    trial: Trial
    trials: tuple[Trial, ...]
    costs: Mapping[str, tuple[float, float]]
    fidelity: Fidelity | None = None
    before: Fidelity | None = None
    metric: tuple[float, float] | None = None
    file: Path | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    advice: tuple[str, ...] = field(default=())

    @property
    def plan(self) -> Plan | None:
        """The plan of the pressed layers; None if the model is only coded."""
        return self.trial.plan

    @property
    def _planned(self) -> PlannedLatency | None:
        """The times measured while planning, for a latency budget."""
        return None if self.plan is None else self.plan.latency

    @property
    def verdict(self) -> str:
        """The meaning of the fidelity in one sentence."""
        if self.fidelity is None:
            return "outputs were not compared: give calibration data"
        return self.fidelity.verdict

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the model as plain data for JSON."""
        return {
            "budget": self.budget,
            "chosen": self.trial.to_dict(),
            "verdict": self.verdict,
            "fidelity": None if self.fidelity is None else self.fidelity.to_dict(),
            "costs": {
                name: {"dense": dense, "compressed": compressed}
                for name, (dense, compressed) in self.costs.items()
            },
            "planned_latency_ms": None if self._planned is None else asdict(self._planned),
            "before": None if self.before is None else self.before.to_dict(),
            "metric": None
            if self.metric is None
            else {"dense": finite(self.metric[0]), "compressed": finite(self.metric[1])},
            "file": None if self.file is None else str(self.file),
            "layers": [] if self.plan is None else [_layer_row(x) for x in self.plan.layers],
            "unpressed": {} if self.plan is None else dict(self.plan.unpressed),
            "trials": [trial.to_dict() for trial in self.trials],
            "warnings": list(self.warnings),
            "advice": list(self.advice),
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        """Return the result as lines of text."""
        lines = [f"{self.budget}: {self.verdict}"]
        lines += [f"warning: {text}" for text in self.warnings]
        lines += ["", f"{'':<10}{'dense':>16}{'compressed':>16}"]
        for name, (dense, compressed) in self.costs.items():
            cells = [_number(name, value) for value in (dense, compressed)]
            share = f"{100 * compressed / dense:>8.1f} %" if dense else ""
            lines.append(f"{name.removesuffix('_ms'):<10}{cells[0]:>16}{cells[1]:>16}{share}")
        if self._planned is not None:
            lines.append(f"when planned, {self._planned.text}")
        fidelity = self.fidelity
        if fidelity is not None and fidelity.loss is not None and fidelity.dense_loss is not None:
            lines.append(f"{'loss':<10}{fidelity.dense_loss:>16.4f}{fidelity.loss:>16.4f}")
        if self.metric is not None:
            lines.append(f"{'metric':<10}{self.metric[0]:>16,.6g}{self.metric[1]:>16,.6g}")
        lines += ["", *trial_lines(self.trials, self.trial)]
        lines += [f"try: {text}" for text in self.advice]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return budget, trial and verdict."""
        return f"<CompressResult {self.budget} by {self.trial.name!r}: {self.verdict}>"


def _number(name: str, value: float) -> str:
    return f"{value:,.2f} ms" if name == "latency_ms" else f"{value:,.0f}"


def finite(value: float | None) -> float | None:
    """Return a number for JSON, or None if it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _layer_row(layer: LayerPlan) -> dict[str, Any]:
    return {
        "name": layer.name,
        "scheme": layer.scheme,
        "ranks": list(layer.ranks),
        "dense_params": layer.dense_params,
        "params": layer.factor_params,
        "dense_macs": layer.dense_macs if layer.calls else None,
        "macs": layer.macs if layer.calls else None,
    }


def trial_lines(trials: Sequence[Trial], chosen: Trial) -> list[str]:
    """Return the trials as an aligned table without empty columns, then failures and notes."""
    measured = [trial for trial in trials if trial.failure is None]
    columns = {
        "estimate": [_percent(trial.estimate) for trial in measured],
        **{
            name: [_percent(_measure(t, name)) for t in measured] for name in ("error", "agreement")
        },
        **{
            name: [_decimal(_measure(t, name)) for t in measured] for name in ("divergence", "loss")
        },
    }
    columns = {name: cells for name, cells in columns.items() if set(cells) != {"–"}}
    columns["s"] = [f"{trial.seconds:.1f}" for trial in measured]
    rows = [["", "tried", *columns]]
    for place, trial in enumerate(measured):
        mark = "→" if trial is chosen else ""
        rows.append([mark, trial.name, *(cells[place] for cells in columns.values())])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    remarks = [(trial, trial.failure or trial.note) for trial in trials]
    return lines + [f"{trial.name}: {text}" for trial, text in remarks if text]


def _measure(trial: Trial, name: str) -> float | None:
    return None if trial.fidelity is None else getattr(trial.fidelity, name)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
