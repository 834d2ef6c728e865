"""The plan of a recipe."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from tensorpress.calibrate.batches import CalibrationBatch
from tensorpress.models.zoo import NETWORKS, Network
from tensorpress.planning import Plan, plan
from tensorpress.planning.budget import parse_budget
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.planning.planner import check_budget, parse_schemes
from tensorpress.runs.recipe import Recipe
from tensorpress.runs.recipe_network import recipe_network
from tensorpress.runs.recipe_sections import LayerPress, Press
from tensorpress.schemes.registry import scheme
from tensorpress.sensitivity.response_energy import RESPONSES, response_energies


def plan_recipe(dense: nn.Module, recipe: Recipe, images: Iterable[CalibrationBatch] = ()) -> Plan:
    """Return the plan of a recipe; only named rank rules depend on the weights.

    ``images`` are the batches for ``allocation: responses``.
    """
    section = recipe.press
    if section is None:
        return plan_from_model(dense)
    entries = section.overrides or {}
    overrides = {name: entry.model_dump(exclude_none=True) for name, entry in entries.items()}
    device = next(dense.parameters()).device
    example = torch.zeros(1, *recipe_network(recipe).input_shape, device=device)
    allocation: Any = section.allocation
    if allocation == RESPONSES:
        (scheme,) = parse_schemes(section.scheme)
        targets, skip = section.targets, section.skip
        allocation = response_energies(dense, images, scheme=scheme, targets=targets, skip=skip)
    return plan(
        dense,
        None if section.budget is None else example,
        scheme=section.scheme,
        ranks=section.ranks,
        allocation=allocation,
        targets=section.targets,
        skip=section.skip,
        overrides=overrides or None,
        budget=section.budget,
        round_to=section.round_to,
    )


def try_plan(net: Network, recipe: Recipe) -> None:
    """Make a recipe's plan for the untrained network, so that mistakes show before training.

    Rank rules that depend on the weights are tried with rank 1, and budgets with a saving of 1 %,
    once it is known that some ranks meet them. Networks of the zoo have no values in
    this where none are needed; any other is built as it will be.
    """
    section = recipe.press
    if section is None:
        if net.name not in NETWORKS:
            net.build()
        return
    if section.budget is not None and not scheme(parse_schemes(section.scheme)[0]).joint:
        trial = {
            "budget": "params=99%",
            "allocation": "uniform",
            "scheme": parse_schemes(section.scheme)[0],
        }
        section = section.model_copy(update=trial)
    else:
        section = _with_rank_1(section)
    entries = section.overrides or {}
    ranks = [section.ranks, *(entry.ranks for entry in entries.values())]
    overrides = {pattern: _with_rank_1(entry) for pattern, entry in entries.items()}
    asked = recipe.press or section
    section = section.model_copy(update={"overrides": overrides or None})
    by_values = net.name not in NETWORKS or any(isinstance(r, str) for r in ranks)
    with torch.device("cpu" if by_values else "meta"):
        model = net.build()
        if asked.budget is not None and parse_budget(asked.budget).kind != "latency":
            check_budget(
                model,
                torch.zeros(1, *net.input_shape),
                scheme=asked.scheme,
                targets=section.targets,
                skip=section.skip,
                overrides={k: v.model_dump(exclude_none=True) for k, v in overrides.items()},
                budget=asked.budget,
            )
        plan_recipe(model, recipe.model_copy(update={"press": section}))


RankSection = TypeVar("RankSection", Press, LayerPress)


def _with_rank_1(section: RankSection) -> RankSection:
    by_name = isinstance(section.ranks, str)
    return section.model_copy(update={"ranks": "energy:1e-9"}) if by_name else section
