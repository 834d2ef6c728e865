"""The command sweep: variants of a recipe, side by side."""

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
            help="What to vary in which recipe, in YAML, or the name of one that tensorpress list "
            "shows."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for all runs; runs/NAME if not given."),
    ] = None,
    processes: Processes = 2,
    cluster: Cluster = None,
    seeds: Annotated[
        str, typer.Option(help="Every variant is run with each of them: 0,1,2.")
    ] = "0",
    pick: Annotated[
        list[str] | None,
        typer.Option(
            help="Test the variant of least validation error within bytes<=1200, or of fewest "
            "bytes within error<=0.95 (per cent); repeatable."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run variants of a recipe, and compare the bytes and errors of their files.

    An interrupted sweep goes on where it stopped when it is started again with the same folder;
    variants, seeds and picks can be added.

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
        If the text is anything but numbers from 0 to 2**32 - 1 with commas.

    Examples
    --------
    >>> parse_seeds("0,1,2")
    [0, 1, 2]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and int(part) < 1 << 32 for part in parts):
        raise InvalidArgumentError(
            f"--seeds: expected numbers from 0 to {(1 << 32) - 1} with commas, got {text!r}"
        )
    return [int(part) for part in parts]
