"""Sweeps: run variants, compare them, and test the picked ones."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tensorpress.codec.save_load import load
from tensorpress.data import batches
from tensorpress.data.splits import load_splits
from tensorpress.errors import InvalidArgumentError
from tensorpress.models.zoo import NETWORKS
from tensorpress.runs.recipe_network import recipe_network
from tensorpress.runs.training import EVALUATION_BATCH
from tensorpress.sweep.page import render
from tensorpress.sweep.picks import Outcome, Pick, frontier
from tensorpress.sweep.trials import run_trials
from tensorpress.sweep.variants import SweepFile, Variant
from tensorpress.train import evaluate
from tensorpress.utils.atomic_files import remove_leftovers, write_atomically
from tensorpress.utils.executors import open_executor

WRITTEN = ("jobs", "common", "runs", "sweep.json", "sweep.html")
"""The files and folders that a sweep writes."""


@dataclass(frozen=True)
class PickResult:
    """The outcome that a rule picks, or None, and its test errors by seed."""

    pick: Pick
    outcome: Outcome | None
    test_errors: Sequence[float] = ()


def sweep(
    file: SweepFile,
    variants: Sequence[Variant],
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    picks: Sequence[Pick] = (),
    processes: int = 2,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Run all variants of a recipe, compare them on validation images, and test the picked ones.

    The test images are used for picked variants only. An interrupted sweep continues where it
    stopped. Runs that are finished are not repeated, so that picks, variants and seeds can be
    added.

    Parameters
    ----------
    file, variants
        From `read_sweep`.
    out : path-like
        Folder for ``sweep.json``, ``sweep.html`` and the subfolders ``runs`` of all runs.
    seeds : sequence of int
        Seeds with which every variant is run. Variants are compared by their mean validation error
        and their largest file.
    picks : sequence of Pick
        Rules that pick the variants to test.
    processes : int
        Number of runs at a time, with one thread each. A script that calls this must start under
        ``if __name__ == "__main__":``.
    executor : Executor, optional
        Workers to use instead of processes: any `concurrent.futures.Executor`, such as that of a
        Dask client; they must see the folder ``out``.

    Returns
    -------
    dict
        The content of ``sweep.json``, with errors in percent. ``bytes`` and ``validation_error`` of
        a variant are None if any of its runs diverged; ``frontier`` is true if no other variant
        dominates it.

    Raises
    ------
    InvalidArgumentError
        If seeds are missing or repeated, processes is below 1, or the folder has other content.
    TensorPressError
        If a run fails; the message names the variant.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise InvalidArgumentError(
            f"expected at least one seed and no duplicates, got {list(seeds)}"
        )
    folder = Path(out)
    for name in WRITTEN:
        remove_leftovers(folder / name)
    with open_executor(processes, executor) as workers:
        outcomes = run_trials(variants, folder, seeds=seeds, executor=workers)
    picked = [_test_pick(pick, outcomes, folder) for pick in picks]
    content = _content(file, outcomes, picked)
    text = json.dumps(content, indent=1, default=str) + "\n"
    write_atomically(folder / "sweep.json", text.encode())
    write_atomically(folder / "sweep.html", render(content).encode())
    return content


def _test_pick(pick: Pick, outcomes: Sequence[Outcome], folder: Path) -> PickResult:
    outcome = pick.choose(outcomes)
    if outcome is None:
        return PickResult(pick, None)
    errors = [_test_error(outcome.variant, folder / one.folder) for one in outcome.trials]
    return PickResult(pick, outcome, errors)


def _test_error(variant: Variant, folder: Path) -> float:
    """Return the error of a run's file on the test images."""
    recipe, net = variant.recipe, recipe_network(variant.recipe)
    data = recipe.data
    images = load_splits(net, data.origin, data.root, data.validation).test
    loader = batches(images, net.preprocess, EVALUATION_BATCH, shuffle=False)
    dense = None if net.name in NETWORKS else net.build()
    error = evaluate(load(folder / "model.tpz", dense), loader).error
    assert error is not None
    return error


def _content(
    file: SweepFile, outcomes: Sequence[Outcome], picked: Sequence[PickResult]
) -> dict[str, Any]:
    first, optimal = outcomes[0].variant.recipe, frontier(outcomes)
    return {
        "title": first.title,
        "network": first.network,
        "data": first.data.origin,
        "seeds": [trial.seed for trial in outcomes[0].trials],
        "variants": [_describe_variant(outcome, outcome in optimal) for outcome in outcomes],
        "picks": [_describe_pick(one) for one in picked],
        "references": [reference.model_dump() for reference in file.references],
    }


def _describe_variant(outcome: Outcome, optimal: bool) -> dict[str, Any]:
    return {
        "name": outcome.variant.name,
        "settings": dict(outcome.variant.settings),
        "bytes": outcome.bytes if outcome.complete else None,
        "validation_error": outcome.error if outcome.complete else None,
        "frontier": optimal,
        "runs": [
            {
                "seed": trial.seed,
                "folder": trial.folder,
                "bytes": trial.bytes,
                "validation_error": trial.error,
            }
            for trial in outcome.trials
        ],
    }


def _describe_pick(picked: PickResult) -> dict[str, Any]:
    outcome, errors = picked.outcome, list(picked.test_errors)
    if outcome is None:
        return {"rule": str(picked.pick), "variant": None}
    return {
        "rule": str(picked.pick),
        "variant": outcome.variant.name,
        "bytes": outcome.bytes,
        "validation_error": outcome.error,
        "test_error": {
            "mean": mean(errors),
            "sd": stdev(errors) if len(errors) > 1 else None,
            "runs": errors,
        },
    }
