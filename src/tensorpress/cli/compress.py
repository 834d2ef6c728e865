"""The command compress."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

import tensorpress as tp
from tensorpress.cli.options import (
    MODEL,
    Data,
    Inputs,
    Json,
    Preprocess,
    Root,
    Skip,
    Targets,
    WeightFile,
)
from tensorpress.cli.output import print_json, print_line
from tensorpress.cli.press import check_new
from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.atomic_files import replace_file, write_atomically

REPORT, JSON_FILE = "report.html", "compress.json"


def compress_command(
    model: Annotated[str, MODEL],
    budget: Annotated[
        str,
        typer.Option(
            "--budget", "-b", help="bytes=25% (of a file), params=50%, macs=300M, latency=12ms."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for model and report.")],
    data: Data = None,
    weights: WeightFile = None,
    inputs: Inputs = None,
    targets: Targets = None,
    skip: Skip = None,
    root: Root = None,
    preprocess: Preprocess = None,
    examples: Annotated[
        int | None,
        typer.Option(help="Examples to fit to, at most 1,024 by default; fewer are faster.", min=1),
    ] = None,
    refine: Annotated[
        bool, typer.Option(help="Train blocks at the end to give the outputs of the dense blocks.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Compress a model to a budget so that its outputs change least, and rate the result.

    Example: tensorpress compress --model resnet20 --weights resnet20.safetensors --budget macs=60%
    --data cifar10 --out small
    """
    from tensorpress.cli.calibration_data import CommandData
    from tensorpress.cli.model_source import MODEL_FILE, DenseByName
    from tensorpress.compress.model_report import describe
    from tensorpress.planning.budget import parse_budget
    from tensorpress.report.model_page import write_model_page

    check_new(out)
    limit = parse_budget(budget)
    dense = DenseByName.parse(model, weights, inputs)
    batches = error = None
    if data is not None:
        opened = CommandData.for_dense(dense, data, root, preprocess)
        batches = opened.sample() if examples is None else opened.sample(examples)
        error = opened.error_function()
    with _new_folder(out), TemporaryDirectory() as folder:
        result = tp.compress(
            dense.model,
            budget,
            batches,
            example_inputs=dense.inputs(dense.model),
            out=Path(folder, MODEL_FILE) if limit.kind == "bytes" else None,
            evaluate=error,
            refine=refine,
            targets=tuple(targets or ("*",)),
            skip=tuple(skip or ()),
        )
        if result.file is None:
            tp.save_checkpoint(result.model, out, result.plan)
        else:
            result = replace(result, file=out / MODEL_FILE)
            with replace_file(out / MODEL_FILE) as temporary:
                shutil.copyfile(Path(folder, MODEL_FILE), temporary)
    dense.origin(data, preprocess).write(out)
    content = {
        "title": dense.name,
        "data": data,
        "command": shlex.join(["tensorpress", *sys.argv[1:]]),
        **result.to_dict(),
    }
    if result.plan is not None:
        example = dense.inputs(dense.model)
        description = describe(dense.model, result.model, example, result.plan)
        content |= {name: description[name] for name in ("layers", "unpressed", "environment")}
    write_atomically(out / JSON_FILE, (json.dumps(content, indent=1) + "\n").encode())
    write_model_page(content, out / REPORT)
    if as_json:
        print_json(content)
        return
    print_line(str(result))
    if result.metric is not None:
        print_line(
            f"          (metric: error in % on examples of {data} that nothing is fitted to)"
        )
    print_line("")
    print_line(f"written  {out}")


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Create a folder before the work begins, and remove it if that fails."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgumentError(f"{folder} cannot be written: {error}") from None
    try:
        yield
    except BaseException:
        for path in created:
            with suppress(OSError):  # it is not empty
                path.rmdir()
        raise
