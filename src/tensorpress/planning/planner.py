"""Plans a model by schemes and ranks, a budget, or overrides of single layers."""

import logging
from collections.abc import Mapping, Sequence
from math import prod
from typing import TypedDict, get_args

from torch import nn
from typing_extensions import Unpack

from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.measure.model_inputs import ExampleInputs
from tensorpress.planning.budget import Budget, parse_budget
from tensorpress.planning.budget_planner import check_reach, plan_within_budget
from tensorpress.planning.budget_rules import AllocationRule
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.fixed_ranks import (
    Entry,
    layer_schemes,
    match_entries,
    nothing_pressed_error,
    plan_fixed_ranks,
    press_where_smaller,
)
from tensorpress.planning.layer_candidates import plan_layer
from tensorpress.planning.layers import Layer, Weights
from tensorpress.planning.plan import Plan
from tensorpress.planning.scores import Scores
from tensorpress.ranks import EVBMFRanks
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.registry import SCHEMES
from tensorpress.schemes.registry import scheme as scheme_named
from tensorpress.schemes.scheme import Ranks
from tensorpress.utils.formatting import format_names
from tensorpress.utils.module_tree import unwrap

AUTO_NAME = "auto"

AUTO = (
    *("tucker2", "channel_svd", "spatial_svd", "spatial_svd_horizontal", "tucker1_in"),
    "svd_weight",  # for weights that the others cannot press
)
"""The schemes of "auto", whose errors at all ranks follow from spectra."""


WARN_ERROR = 0.7
"""A plan warns above this relative error of a weight, at which half of its energy is lost."""

logger = logging.getLogger("tensorpress.planning")


class PlanOptions(TypedDict, total=False):
    """The options of `plan`, for functions that pass them on."""

    scheme: str | Sequence[str]
    ranks: Ranks | None
    allocation: AllocationRule | Scores | None
    targets: Sequence[str]
    skip: Sequence[str]
    overrides: Mapping[str, Entry] | None
    budget: str | None
    round_to: int


def plan(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    scheme: str | Sequence[str] = AUTO_NAME,
    ranks: Ranks | None = None,
    allocation: AllocationRule | Scores | None = None,
    targets: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    overrides: Mapping[str, Entry] | None = None,
    budget: str | None = None,
    round_to: int = 1,
    weights: Weights | None = None,
) -> Plan:
    """Plan how a model's layers are decomposed.

    A model on the meta device can be planned too, unless ranks depend on the values of the weights.

    Parameters
    ----------
    model : nn.Module
        Any model. The plan names the layers that stay dense, with the reason. The wrappers of
        `torch.compile` and DataParallel are removed from names.
    example_inputs : Tensor, sequence or mapping, optional
        Arguments of one forward pass, needed for MACs and latency: a single one, several by
        position, or by name. Their first axis is the batch. They may be nested or scalars.
    scheme : str or sequence of str
        A name of `SCHEMES`, or several names, from which every layer gets the one with the least
        error at its cost. "auto" means all schemes whose errors follow from spectra.
    ranks
        The ranks of all layers, as `press_layer` takes them: a tuple, an int, a float in (0, 1],
        "evbmf", "evbmf:0.7", "energy:0.9" or a rule. A budget takes no ranks.
    allocation : {"error", "energy", "uniform", "evbmf"} or Scores, optional
        The rule that divides a budget among the layers. "error" (the default) minimizes the sum of
        e² / (1 − e²), where e is the relative error of a weight. "energy" maximizes the product of
        the remaining PCA energies by the greedy rule of Zhang et al. (2016). "uniform" takes one
        fraction of the largest ranks for all layers. "evbmf" scales all ranks of EVBMF equally.
        `Scores` from `tensorpress.sensitivity` minimize the scored loss.
    targets, skip : sequence of str
        Layers to press, and exceptions that stay dense: names, patterns with ``*``, or ``re:`` and
        a regular expression for the whole name.
    overrides : mapping of str to mapping, optional
        Settings of single layers by name or pattern: ``ranks``, another ``scheme``, and options of
        the scheme. An exact name beats patterns, a later pattern beats an earlier one, and a
        warning names overrides without effect. Options of ada_tucker and scada_tucker are ``modes``
        (a list of sizes, or "original" for the axes of the weight), ``diagonal: true`` (CP) and
        ``reduced: true`` (see `TuckerWeight`); those of tensor_train, tt_conv and tt_weight are
        ``row_modes`` and ``column_modes``. Without ``ranks`` and a budget, all other layers stay
        dense.
    budget : str, optional
        The cost of the whole model: ``params=50%``, ``bytes=10MB``, ``macs=300M`` or
        ``latency=12ms``; see `tensorpress.planning.budget.parse_budget`. ada_tucker and
        scada_tucker take params and bytes.
    round_to : int
        Ranks are multiples of it, or the largest ranks, for hardware that is fast at these.
    weights : callable, optional
        Returns the weight of a layer by name, for a model on the meta device.

    Raises
    ------
    InvalidArgumentError
        If a scheme is unknown, a pattern matches no layer, an override is invalid, modes or ranks
        do not fit, the budget cannot be met, or nothing can be pressed.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))
    >>> plan(net, budget="params=20%").params <= 0.2 * 405_510
    True
    >>> print(plan(net, torch.zeros(1, 800), scheme="channel_svd", ranks=0.1))
    layer          scheme       weight   ranks    dense  stored  dense MACs    MACs
    0              channel_svd  500×800  50     400,000  65,000     400,000  65,000
    2              channel_svd  10×500   1        5,000     510       5,000     510
    (not pressed)                                   510     510           0       0
    total                                       405,510  66,020     405,000  65,510
    """
    schemes = parse_schemes(scheme)
    check_target(schemes, ranks=ranks, allocation=allocation, budget=budget, overrides=overrides)
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise InvalidArgumentError(f"round_to must be a positive number, got {round_to!r}")
    limit = None if budget is None else parse_budget(budget)
    dense = DenseModel.from_module(unwrap(model), example_inputs, weights)
    layers, unpressed = dense.select_layers(targets, skip)
    chosen: Sequence[LayerPlan]
    if limit is not None and scheme_named(schemes[0]).joint:
        chosen, others = _plan_together(limit, dense, layers, unpressed, schemes[0])
        return dense.plan(schemes[0], chosen, {**unpressed, **others})
    entries, latency = match_entries(overrides or {}, layers, unpressed), None
    if limit is not None:
        fixed, rest, allowed = _divide_layers(layers, entries, schemes)
        rule = allocation or "error"
        pressed, others, latency = plan_within_budget(
            limit, dense, rest, allowed, fixed, rule, round_to
        )
    else:
        fixed = plan_fixed_ranks(layers, entries, schemes, ranks, round_to)
        rest = {name: layer for name, layer in layers.items() if name not in fixed}
        pressed, others = {}, dict.fromkeys(rest, "not named in overrides")
        if ranks is not None:
            pressed, others = press_where_smaller(rest, schemes[0], ranks, round_to)
            _warn_of_noise(ranks, pressed)
    if not fixed and not pressed:
        raise nothing_pressed_error({**unpressed, **others})
    plans = {**fixed, **pressed}
    chosen = [plans[name] for name in layers if name in plans]
    for warning in [] if isinstance(allocation, Scores) else lost_layers(chosen):
        logger.warning("%s", warning)
    return dense.plan(format_schemes(schemes), chosen, {**unpressed, **others}, latency)


def check_budget(
    model: nn.Module, example_inputs: ExampleInputs | None, **options: Unpack[PlanOptions]
) -> None:
    """Raise an error if no ranks meet a budget, or the dense model meets it.

    No weight is read, so this can be checked before a network is trained or its layers are scored.
    For a latency, only the dense model is timed.

    Parameters
    ----------
    model, example_inputs, **options
        As for `plan`, with a budget.

    Raises
    ------
    InvalidArgumentError, BudgetMetError
        As for `plan`.

    Examples
    --------
    >>> check_budget(nn.Sequential(nn.Linear(80, 50)), None, budget="params=1%")
    Traceback (most recent call last):
    ...
    tensorpress.errors.InvalidArgumentError: the budget params=1% is out of reach: at the smallest \
ranks the model still has 180 of 4,050 parameters; the largest dense parameters are 0.bias (50 \
parameters)
    """
    limit, schemes = parse_budget(options.get("budget") or ""), options.get("scheme", AUTO_NAME)
    names = parse_schemes(schemes)
    dense = DenseModel.from_module(unwrap(model), example_inputs, None)
    layers, unpressed = dense.select_layers(options.get("targets", ("*",)), options.get("skip", ()))
    if scheme_named(names[0]).joint:
        return
    entries = match_entries(options.get("overrides") or {}, layers, unpressed)
    fixed, rest, allowed = _divide_layers(layers, entries, names)
    check_reach(limit, dense, rest, allowed, fixed)


def _divide_layers(
    layers: Mapping[str, Layer], entries: Mapping[str, Entry], schemes: Sequence[str]
) -> tuple[dict[str, LayerPlan], dict[str, Layer], dict[str, Sequence[str]]]:
    """Return the layers whose overrides have ranks, and the others with their possible schemes."""
    with_ranks = {name: entry for name, entry in entries.items() if "ranks" in entry}
    fixed = plan_fixed_ranks(layers, with_ranks, schemes, None, 1)
    rest = {name: layer for name, layer in layers.items() if name not in fixed}
    for name in rest:
        others = [key for key in entries.get(name, ()) if key != "scheme"]
        if others:
            raise InvalidArgumentError(
                f"layer {name!r}: its override {others[0]!r} needs ranks, which a budget "
                "then does not change"
            )
    return fixed, rest, {name: layer_schemes(entries.get(name), schemes) for name in rest}


def _warn_of_noise(ranks: Ranks, pressed: Mapping[str, LayerPlan]) -> None:
    """Warn of layers in which EVBMF finds only noise."""
    if not (isinstance(ranks, EVBMFRanks) or str(ranks).startswith("evbmf")):
        return
    names = [name for name, layer in pressed.items() if set(layer.ranks) == {1}]
    if names:
        logger.warning(
            "EVBMF finds only noise in %d of %d layers, which get rank 1 and lose most of their "
            "weight: %s; give a budget or explicit ranks",
            *(len(names), len(pressed), format_names(names)),
        )


def lost_layers(layers: Sequence[LayerPlan]) -> list[str]:
    """Return a warning for every layer that loses most of its weight's energy.

    Examples
    --------
    >>> from torch import nn
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> spec = describe_layer(nn.Linear(30, 20))
    >>> lost_layers([LayerPlan("fc", "channel_svd", spec, (1,), error=0.95)])
    ["layer 'fc' at ranks 1 loses 90 % of its weight's energy"]
    """
    return [
        f"layer {layer.name!r} at ranks {layer.format_ranks()} loses "
        f"{100 * layer.error**2:.0f} % of its weight's energy"
        for layer in layers
        if layer.error is not None and layer.error > WARN_ERROR
    ]


def check_target(
    schemes: Sequence[str], *, ranks: object, allocation: object, budget: object, overrides: object
) -> None:
    """Raise an error unless options name exactly one target: ranks, a budget or overrides.

    Parameters
    ----------
    schemes : sequence of str
        The schemes of all layers.
    ranks, allocation, budget, overrides
        The options of `plan`.

    Raises
    ------
    InvalidArgumentError
        If options are missing or contradict each other.
    """
    name = schemes[0]
    if scheme_named(name).joint:
        if ranks is not None:
            raise InvalidArgumentError(
                f"{name} takes no ranks for all layers: give a budget of params, or overrides with "
                "modes and ranks"
            )
        if allocation is not None:
            raise InvalidArgumentError(
                f"{name} takes no allocation, because it divides a budget by its own rule"
            )
        if (budget is None) == (overrides is None):
            raise InvalidArgumentError(
                f"{name} needs either a budget, or overrides with modes and ranks"
            )
    elif budget is not None:
        if ranks is not None:
            raise InvalidArgumentError(
                f"give either ranks ({ranks!r}) or a budget ({budget}), not both. The rule that "
                f"divides a budget is the allocation ({', '.join(get_args(AllocationRule))} or "
                "scores)"
            )
        if not (allocation is None or isinstance(allocation, Scores)):
            check_allocation(allocation)
    elif allocation is not None:
        raise InvalidArgumentError("allocation is the rule that divides a budget: give a budget")
    elif ranks is None and overrides is None:
        raise InvalidArgumentError(
            f"give a budget, ranks for {format_schemes(schemes)}, or overrides with ranks"
            if len(schemes) == 1
            else "give a budget, or one scheme with its ranks, or overrides with ranks"
        )
    elif ranks is not None and len(schemes) > 1:
        raise InvalidArgumentError(
            f"ranks mean different things for {format_schemes(schemes)}: name one scheme, or "
            "give a budget"
        )


def check_allocation(name: object) -> None:
    """Raise an `InvalidArgumentError` unless this is the name of an allocation rule."""
    names = get_args(AllocationRule)
    if not isinstance(name, str):
        raise InvalidArgumentError(
            f"allocation must be scores or one of {', '.join(names)}: {name!r}"
        )
    if name not in names:
        raise unknown_name("allocation", name, names)


def parse_schemes(scheme: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the schemes of a plan.

    Raises
    ------
    InvalidArgumentError
        If there is none, one is unknown, or one of several presses all layers together.
    """
    if isinstance(scheme, str):
        scheme = AUTO if scheme == AUTO_NAME else (scheme,)
    if not scheme:
        raise InvalidArgumentError("scheme is empty: name at least one")
    for name in scheme:
        if name not in SCHEMES:
            raise unknown_name("scheme", name, (AUTO_NAME, *SCHEMES))
        if SCHEMES[name].joint and len(scheme) > 1:
            raise InvalidArgumentError(f"{name} cannot be one of several schemes to choose from")
    return tuple(dict.fromkeys(scheme))


def format_schemes(schemes: Sequence[str]) -> str:
    """Return the schemes of a plan as text."""
    return AUTO_NAME if tuple(schemes) == AUTO else ", ".join(schemes)


def _plan_together(
    limit: Budget,
    dense: DenseModel,
    layers: Mapping[str, Layer],
    unpressed: Mapping[str, str],
    scheme: str,
) -> tuple[list[LayerPlan], dict[str, str]]:
    """Plan all layers together by a scheme that chooses their options and ranks for a budget."""
    method = scheme_named(scheme)
    specs = {name: layer.spec(method) for name, layer in layers.items()}
    replaced = sum(prod(layer.shape) for layer in layers.values())
    chosen = method.allocate(specs, dense.max_params(limit) - dense.params + replaced)
    small = [name for name in layers if name not in chosen]
    others = dict.fromkeys(small, "too small to be made smaller")
    if not chosen:
        raise nothing_pressed_error({**unpressed, **others})
    return [plan_layer(layers[name], *choice) for name, choice in chosen.items()], others
