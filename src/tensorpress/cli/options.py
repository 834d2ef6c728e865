"""Options that several commands have, and what their text means."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.budget_rules import AllocationRule
from tensorpress.planning.planner import PlanOptions, check_allocation
from tensorpress.planning.scores import Scores
from tensorpress.utils.config_parsing import parse_yaml

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MODEL = typer.Option(
    "--model",
    "-m",
    help="A network of the zoo, torchvision:NAME, timm:NAME, hf:FOLDER_OR_ID or "
    "package.module:function; keyword arguments after commas: "
    "timm:vgg16,num_classes=10.",
)
Model = Annotated[str | None, MODEL]
WeightFile = Annotated[
    Path | None,
    typer.Option("--weights", "-w", help="Its weights, a safetensors file; else random ones."),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        help="An example input, 1x3x224x224 or 1x128:int64, the batch first; repeatable. Known for "
        "most models.",
    ),
]
Root = Annotated[
    Path | None,
    typer.Option("--root", help="Folder of the data sets; TENSORPRESS_DATA if not given."),
]
SchemeNames = Annotated[
    str,
    typer.Option(
        "--scheme", "-s", help="auto, a scheme, or several with commas to choose from by layer."
    ),
]
RankText = Annotated[
    str | None,
    typer.Option(
        "--ranks",
        "-r",
        help="0.5 (of the largest), 8, 16x32, evbmf, evbmf:0.7 or energy:0.9.",
    ),
]
AllocationText = Annotated[
    str | None,
    typer.Option(
        "--allocation",
        "-a",
        help="The rule by which a budget is spread: error (the default), energy, uniform, evbmf, "
        "responses (with --calibrate) or SCORES.json.",
    ),
]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        "-b",
        help="What the whole model may cost: params=50%, bytes=10MB, macs=300M, latency=12ms.",
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--targets",
        "-t",
        help="Layers to press: names, patterns with *, re:REGEX; repeatable. All by default.",
    ),
]
Skip = Annotated[
    list[str] | None, typer.Option("--skip", help="Layers to keep dense, named likewise.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        help="What is done with some layers: 'layer1.*: {scheme: cp, ranks: 8}'; repeatable.",
    ),
]
RoundTo = Annotated[
    int, typer.Option(help="Ranks are multiples of it, or the largest ones.", min=1)
]

Calibrate = Annotated[
    str | None,
    typer.Option(help="Data set to whose training images the model responds: cifar10."),
]

Processes = Annotated[
    int, typer.Option(help="Processes that work at the same time, with one thread each.", min=1)
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Scheduler of a Dask cluster that does the work, in place of --processes.",
    ),
]
ALL = ("*",)


@dataclass(frozen=True)
class PlanArguments:
    """What a plan is made from, as the command line says it."""

    scheme: str
    ranks: str | None
    allocation: str | None
    budget: str | None
    targets: Sequence[str] | None
    skip: Sequence[str] | None
    overrides: Sequence[str] | None
    round_to: int

    @property
    def is_default(self) -> bool:
        """Whether nothing was said that a plan is made from."""
        return self == PlanArguments("auto", None, None, None, None, None, None, 1)

    def options(self) -> PlanOptions:
        """Return the keyword arguments of `tensorpress.plan`.

        Raises
        ------
        InvalidArgumentError
            For an override that cannot be read.
        """
        names = tuple(name.strip() for name in self.scheme.split(","))
        return {
            "scheme": names[0] if len(names) == 1 else names,
            "ranks": None if self.ranks is None else parse_ranks(self.ranks),
            "allocation": None if self.allocation is None else parse_allocation(self.allocation),
            "budget": self.budget,
            "targets": tuple(self.targets or ALL),
            "skip": tuple(self.skip or ()),
            "overrides": parse_overrides(self.overrides) if self.overrides else None,
            "round_to": self.round_to,
        }


def parse_ranks(text: str) -> int | float | str | tuple[int, ...]:
    """Return what ``--ranks`` means.

    Examples
    --------
    >>> [parse_ranks(text) for text in ("0.5", "8", "16x32", "16,32", "energy:0.9")]
    [0.5, 8, (16, 32), (16, 32), 'energy:0.9']
    """
    if re.fullmatch(r"\d+([x,]\d+)+", text):
        return tuple(map(int, re.split("[x,]", text)))
    if re.fullmatch(r"\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def parse_allocation(text: str) -> AllocationRule | Scores:
    """Return what ``--allocation`` means: the name of a rule, or the scores of a file.

    Raises
    ------
    InvalidArgumentError
        For an unknown name.
    """
    if text.endswith(".json"):
        return Scores.read(text)
    check_allocation(text)
    return cast(AllocationRule, text)


def parse_overrides(texts: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return what every ``--override`` means, by pattern.

    Raises
    ------
    InvalidArgumentError
        For text that is no pattern with a mapping, naming it.

    Examples
    --------
    >>> parse_overrides(["*.conv1: {scheme: cp, ranks: 8}"])
    {'*.conv1': {'scheme': 'cp', 'ranks': 8}}
    """
    found: dict[str, Mapping[str, Any]] = {}
    for text in texts:
        # By hand up to the colon: in YAML a leading * is an alias.
        pattern, _, entry = text.partition(": ")
        options = parse_yaml(entry)
        if not pattern or not isinstance(options, dict):
            raise InvalidArgumentError(
                f"--override {text!r}: expected PATTERN: {{KEY: VALUE, ...}}, as in "
                "'layer1.*: {scheme: cp, ranks: 8}'"
            )
        found[pattern.strip("'\"")] = options
    return found
