"""Options of several commands."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MODEL = typer.Option(
    "--model",
    "-m",
    help="A network of the zoo, torchvision:NAME, timm:NAME, hf:FOLDER_OR_ID or "
    "package.module:function; keyword arguments after commas: "
    "timm:vgg16,num_classes=10.",
)
SOURCE = typer.Argument(help="A .tpz file, or a folder written by press, compress or run.")
Source = Annotated[Path | None, SOURCE]
Model = Annotated[str | None, MODEL]
WeightFile = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        "-w",
        help="The weight file: safetensors, .pt or .tpz. By default weights are random.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        help="The shape of an example input, batch first: 1x3x224x224 or 1x128:int64; "
        "repeatable. Not needed for most models.",
    ),
]
Root = Annotated[
    Path | None,
    typer.Option("--root", help="Folder of all datasets; by default TENSORPRESS_DATA."),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        "--calibrate",
        help="Data to fit layers to: a dataset (tensorpress list), a folder or file, or "
        "package.module:function. Labels are not used.",
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        help="Preprocessing of images, if the model does not define it: 'size: 224, mean: [0.485, "
        "0.456, 0.406], std: [0.229, 0.224, 0.225]'."
    ),
]

Processes = Annotated[
    int,
    typer.Option(help="Number of processes, with one thread each.", min=1, max=4096),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Scheduler of a Dask cluster to use instead of --processes.",
    ),
]


Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--targets",
        "-t",
        help="Layers to press: names, patterns with *, re:REGEX; repeatable. By default all.",
    ),
]
Skip = Annotated[
    list[str] | None, typer.Option("--skip", help="Layers to keep dense, in the same format.")
]


@dataclass(frozen=True)
class PlanArguments:
    """The options from which a plan is made; see `add_plan_options`."""

    scheme: Annotated[
        str,
        typer.Option(
            "--scheme",
            "-s",
            help="auto, a scheme, or several with commas to choose from for each layer.",
        ),
    ] = "auto"
    ranks: Annotated[
        str | None,
        typer.Option(
            "--ranks", "-r", help="0.5 (of the largest), 8, 16x32, evbmf, evbmf:0.7 or energy:0.9."
        ),
    ] = None
    allocation: Annotated[
        str | None,
        typer.Option(
            "--allocation",
            "-a",
            help="The rule that divides a budget: error (the default), energy, uniform, evbmf, "
            "responses (with --data) or SCORES.json.",
        ),
    ] = None
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            help="Largest cost of the model: params=50%, bytes=10MB, macs=300M, latency=12ms.",
        ),
    ] = None
    targets: Targets = None
    skip: Skip = None
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--override",
            help="Settings for some layers: 'layer1.*: {scheme: cp, ranks: 8}'; repeatable.",
        ),
    ] = None
    round_to: Annotated[
        int, typer.Option(help="Round ranks to multiples of this number.", min=1)
    ] = 1


def add_plan_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter ``arguments`` of a command by an option for each of its fields."""
    fields = signature(PlanArguments).parameters
    parameters: list[Parameter] = []
    for parameter in signature(command, eval_str=True).parameters.values():
        parameters += fields.values() if parameter.name == "arguments" else [parameter]

    @wraps(command)
    def wrapper(**options: Any) -> None:
        arguments = PlanArguments(**{name: options.pop(name) for name in fields})
        command(arguments=arguments, **options)

    # Typer reads the options of a command from its signature.
    keywords = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
    wrapper.__signature__ = signature(command).replace(parameters=keywords)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper
