"""Layers that are pressed at given ranks: by entries for single layers, or all by one rule."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.planning.layer_candidates import (
    applicable_schemes,
    plan_with_ranks,
    refuse_no_gain,
)
from tensorpress.planning.layers import Layer, match_names
from tensorpress.ranks import parse_rank_rule
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import Sizes
from tensorpress.schemes.registry import SCHEMES
from tensorpress.schemes.registry import scheme as scheme_named
from tensorpress.schemes.scheme import Ranks
from tensorpress.utils.formatting import format_shape

Entry = Mapping[str, Any]

logger = logging.getLogger("tensorpress.planning")


def match_entries(
    overrides: Mapping[str, Entry], layers: Mapping[str, Layer], unpressed: Mapping[str, str]
) -> dict[str, Entry]:
    """Return the entry of every layer that has one.

    An entry by the layer's name goes before patterns, of which the last one that matches holds. A
    warning names each entry that holds for no layer.

    Parameters
    ----------
    overrides : mapping of str to mapping
        Entries by name or pattern, as `tensorpress.plan` takes them.
    layers : mapping of str to Layer
        The layers that can be pressed.
    unpressed : mapping of str to str
        The other layers, with the reason.

    Raises
    ------
    InvalidArgumentError
        For a pattern that matches nothing, or an entry that is no mapping.
    """
    patterns: dict[str, str] = {}  # the pattern whose entry holds, by layer
    for pattern in sorted(overrides, key=layers.__contains__):
        names = match_names(pattern, layers, unpressed)
        entry = overrides[pattern]
        if not isinstance(entry, Mapping):
            raise InvalidArgumentError(
                f"layer {names[0]!r}: expected a mapping such as {{'ranks': 8}}, got {entry!r}"
            )
        patterns |= dict.fromkeys(names, pattern)
    for pattern in overrides:
        if pattern not in patterns.values():
            logger.warning(
                "the entry %r of overrides has no effect: its layers all have other entries",
                pattern,
            )
    return {name: overrides[patterns[name]] for name in layers if name in patterns}


def plan_fixed_ranks(
    layers: Mapping[str, Layer],
    entries: Mapping[str, Entry],
    schemes: Sequence[str],
    ranks: Ranks | None,
    round_to: int,
) -> dict[str, LayerPlan]:
    """Return the plans of the layers that have entries, smaller or not.

    Parameters
    ----------
    layers : mapping of str to Layer
        The layers that can be pressed.
    entries : mapping of str to mapping
        The entries of some of them.
    schemes : sequence of str
        The schemes of all layers.
    ranks : optional
        The ranks of all layers, for entries without ranks.
    round_to : int
        ``ranks`` are rounded to multiples of it; ranks of an entry are not rounded.

    Raises
    ------
    InvalidArgumentError
        Naming the layer, for unknown keys, no ranks, ranks that do not fit, or a layer that the
        scheme cannot press.
    """
    plans: dict[str, LayerPlan] = {}
    for name, entry in entries.items():
        try:
            [scheme] = layer_schemes(entry, schemes)
            plans[name] = _plan_entry(layers[name], entry, scheme, ranks, round_to)
        except (InvalidArgumentError, TypeError) as error:
            raise InvalidArgumentError(f"layer {name!r}: {error}") from None
    _check_shared(plans.values())
    return plans


def layer_schemes(entry: Entry | None, schemes: Sequence[str]) -> Sequence[str]:
    """Return the schemes that may press a layer: the one of its entry, or those of all layers.

    Raises
    ------
    InvalidArgumentError
        For an unknown scheme, or an entry that does not say which of several schemes it is for.
    """
    scheme = None if entry is None else entry.get("scheme")
    if scheme is None:
        if entry is not None and len(schemes) > 1:
            raise InvalidArgumentError(
                f"its entry must name a scheme: the ranks of {', '.join(schemes)} are not the same"
            )
        return schemes
    if scheme not in SCHEMES:
        raise unknown_name("scheme", scheme, SCHEMES)
    return (scheme,)


def press_where_smaller(
    layers: Mapping[str, Layer], scheme: str, ranks: Ranks, round_to: int
) -> tuple[dict[str, LayerPlan], dict[str, str]]:
    """Return the plans of the layers that a scheme makes smaller, and the others with the reason.

    Parameters
    ----------
    layers : mapping of str to Layer
        The layers that can be pressed.
    scheme : str
        The scheme of all layers.
    ranks
        The ranks of all layers, or the rule that chooses them.
    round_to : int
        Ranks are multiples of it.

    Raises
    ------
    InvalidArgumentError
        Naming the layer whose weight the rule cannot use.
    """
    pressed: dict[str, LayerPlan] = {}
    unpressed: dict[str, str] = {}
    method, rule = scheme_named(scheme), parse_rank_rule(ranks)
    for name, layer in layers.items():
        usable, reason = applicable_schemes(layer, [method])
        if not usable:
            unpressed[name] = reason
            continue
        try:
            plan = plan_with_ranks(layer, method, rule, round_to)
        except InvalidArgumentError as error:
            if rule.needs_spectra:
                raise InvalidArgumentError(f"layer {name!r}: {error}") from None
            unpressed[name] = str(error)
            continue
        refusal = refuse_no_gain(plan)
        if refusal is None:
            pressed[name] = plan
        else:
            unpressed[name] = refusal
    return pressed, unpressed


def nothing_pressed_error(unpressed: Mapping[str, str]) -> InvalidArgumentError:
    """Return the error for a model of which nothing is pressed, with the reasons."""
    reasons = "".join(f"; {name!r}: {reason}" for name, reason in unpressed.items())
    return InvalidArgumentError(f"the model has no layer that can be pressed{reasons}")


def _plan_entry(
    layer: Layer, entry: Entry, scheme: str, ranks: Ranks | None, round_to: int
) -> LayerPlan:
    method = scheme_named(scheme)
    options = {key: value for key, value in entry.items() if key not in ("ranks", "scheme")}
    if "ranks" in entry:
        ranks, round_to = entry["ranks"], 1
    if ranks is None:
        method.with_options(options)
        raise InvalidArgumentError("ranks are needed")
    obstacle = layer.obstacle(method)
    if obstacle is not None:
        raise InvalidArgumentError(f"it cannot be pressed by {scheme}: {obstacle}")
    spec = layer.spec(method)
    method, ranks = method.read_entry(spec, options, ranks)
    method.check(spec)
    return plan_with_ranks(layer, method, parse_rank_rule(ranks), round_to)


def _check_shared(layers: Iterable[LayerPlan]) -> None:
    """Raise an error if layers that share a core name different shapes for it."""
    cores: dict[str, set[Sizes]] = {}
    for layer in layers:
        if layer.method.shared:
            cores.setdefault(layer.scheme, set()).add(layer.ranks)
    for shapes in cores.values():
        if len(shapes) > 1:
            raise InvalidArgumentError(
                "a shared core has one shape, but the layers name "
                f"{', '.join(sorted(map(format_shape, shapes)))}"
            )
