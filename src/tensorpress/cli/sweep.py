"""The command sweep: variants of a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from tensorpress.cli.options import Cluster, Json, Processes
from tensorpress.cli.output import print_json, print_line, print_table
from tensorpress.cli.run import RUNS
from tensorpress.errors import InvalidArgumentError
from tensorpress.runs.library import find_in_library


def sweep_command(
    file: Annotated[
        str,
        typer.Argument(
            help="A sweep file in YAML, with a recipe and the settings to vary, or a name from "
            "tensorpress list."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for all runs; by default runs/NAME."),
    ] = None,
    processes: Processes = 2,
    cluster: Cluster = None,
    seeds: Annotated[str, typer.Option(help="Seeds for every variant: 0,1,2.")] = "0",
    pick: Annotated[
        list[str] | None,
        typer.Option(
            help="Test the variant with the lowest validation error within bytes<=1200, or the "
            "fewest bytes within error<=0.95 (percent); repeatable."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run variants of a recipe, and compare the bytes and errors of their files.

    After an interruption, repeat the command to continue; variants, seeds and picks can be added.

    Example: tensorpress sweep sweep.yaml --out sweeps/lenet5 --pick "bytes<=1200"
    """
    from tensorpress.sweep import Pick, read_sweep, sweep
    from tensorpress.sweep.table import pick_table, variant_table
    from tensorpress.utils.executors import connect_cluster

    picks = [Pick.parse(text) for text in pick or ()]
    numbers = parse_seeds(seeds)
    path = find_in_library("sweep", file)
    folder = out or RUNS / path.stem
    settings, variants = read_sweep(path)
    with connect_cluster(cluster) as executor:
        result = sweep(
            settings,
            variants,
            folder,
            seeds=numbers,
            picks=picks,
            processes=processes,
            executor=executor,
        )
    if as_json:
        print_json(result)
        return
    print_table(variant_table(result))
    if result["picks"]:
        print_line("")
        print_table(pick_table(result))
    print_line(f"page    {(folder / 'sweep.html').resolve().as_uri()}")


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of ``--seeds``.

    Raises
    ------
    InvalidArgumentError
        If the text is not a list of numbers from 0 to 2**32 - 1, separated by commas.

    Examples
    --------
    >>> parse_seeds("0,1,2")
    [0, 1, 2]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and int(part) < 1 << 32 for part in parts):
        raise InvalidArgumentError(
            f"--seeds: expected numbers from 0 to {(1 << 32) - 1}, separated by commas, got "
            f"{text!r}"
        )
    return [int(part) for part in parts]
