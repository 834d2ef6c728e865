"""The plan for the options of the command line."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import tensorpress as tp
from tensorpress.calibrate.batches import CalibrationBatch
from tensorpress.cli.model_source import DenseByName
from tensorpress.cli.options import PlanArguments
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.budget import parse_budget
from tensorpress.planning.budget_rules import AllocationRule
from tensorpress.planning.plan import Plan
from tensorpress.planning.planner import PlanOptions, check_allocation
from tensorpress.planning.scores import Scores
from tensorpress.sensitivity.response_energy import RESPONSES, response_energies
from tensorpress.utils.config_parsing import parse_yaml


def plan_from_arguments(
    dense: DenseByName, arguments: PlanArguments, images: Iterable[CalibrationBatch] | None = None
) -> Plan:
    """Plan a model, which is only loaded if the plan depends on its values.

    Parameters
    ----------
    dense : DenseByName
        The model to plan.
    arguments : PlanArguments
        The options of the command.
    images : iterable of batches, optional
        Images for ``--allocation responses``.

    Raises
    ------
    InvalidArgumentError
        If an option is invalid, or allocation by responses has no images.
    """
    if arguments.allocation == RESPONSES:
        if images is None:
            raise InvalidArgumentError(f"--allocation {RESPONSES} needs --data")
        model = dense.model
        options = parse_plan_options(replace(arguments, allocation=None))
        options["allocation"] = response_energies(
            model,
            images,
            scheme=arguments.scheme,
            targets=options["targets"],
            skip=options["skip"],
        )
        return tp.plan(model, dense.inputs(model), **options)
    timed = arguments.budget is not None and parse_budget(arguments.budget).kind == "latency"
    model = dense.model if timed else dense.skeleton
    options = parse_plan_options(arguments)
    return tp.plan(model, dense.inputs(model), **options, weights=dense.weight)


def parse_plan_options(arguments: PlanArguments) -> PlanOptions:
    """Return the keyword arguments of `tensorpress.plan`.

    Raises
    ------
    InvalidArgumentError
        If an option is invalid.
    """
    names = tuple(name.strip() for name in arguments.scheme.split(","))
    ranks, allocation = arguments.ranks, arguments.allocation
    return {
        "scheme": names[0] if len(names) == 1 else names,
        "ranks": None if ranks is None else parse_ranks(ranks),
        "allocation": None if allocation is None else parse_allocation(allocation),
        "budget": arguments.budget,
        "targets": tuple(arguments.targets or ("*",)),
        "skip": tuple(arguments.skip or ()),
        "overrides": parse_overrides(arguments.overrides) if arguments.overrides else None,
        "round_to": arguments.round_to,
    }


def parse_ranks(text: str) -> int | float | str | tuple[int, ...]:
    """Return the ranks of ``--ranks``.

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
    """Return the allocation rule, or the scores in the file, of ``--allocation``.

    Raises
    ------
    InvalidArgumentError
        If there is no such rule.
    """
    if text.endswith(".json"):
        return Scores.read(text)
    check_allocation(text)
    return cast(AllocationRule, text)


def parse_overrides(texts: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return the options of every ``--override``, by pattern.

    Raises
    ------
    InvalidArgumentError
        If a text is not a pattern with a mapping; the message names it.

    Examples
    --------
    >>> parse_overrides(["*.conv1: {scheme: cp, ranks: 8}"])
    {'*.conv1': {'scheme': 'cp', 'ranks': 8}}
    """
    overrides: dict[str, Mapping[str, Any]] = {}
    for text in texts:
        # The pattern is parsed by hand, because a leading * is an alias in YAML.
        pattern, _, entry = text.partition(": ")
        options = parse_yaml(entry)
        if not pattern or not isinstance(options, dict):
            raise InvalidArgumentError(
                f"--override {text!r}: expected PATTERN: {{KEY: VALUE, ...}}, such as "
                "'layer1.*: {scheme: cp, ranks: 8}'"
            )
        overrides[pattern.strip("'\"")] = options
    return overrides
