"""Layers that are pressed at given ranks: by entries for single layers, or all by one rule."""

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


def match_entries(
    overrides: Mapping[str, Entry], layers: Mapping[str, Layer], kept: Mapping[str, str]
) -> dict[str, Entry]:
    """Return the entry of every layer that has one, the last that names it.

    Raises
    ------
    InvalidArgumentError
        For a pattern that matches nothing, or an entry that is no mapping.
    """
    entries: dict[str, Entry] = {}
    for pattern, entry in overrides.items():
        found = match_names(pattern, layers, kept)
        if not isinstance(entry, Mapping):
            raise InvalidArgumentError(
                f"layer {found[0]!r}: expected a mapping such as {{'ranks': 8}}, got {entry!r}"
            )
        entries |= dict.fromkeys(found, entry)
    return entries


def plan_fixed_ranks(
    layers: Mapping[str, Layer],
    entries: Mapping[str, Entry],
    schemes: Sequence[str],
    ranks: Ranks | None,
    round_to: int,
) -> dict[str, LayerPlan]:
    """Return the plans of the layers that have entries, smaller or not.

    Ranks that an entry itself says are taken as they are; those of all layers are rounded.

    Raises
    ------
    InvalidArgumentError
        Naming the layer, for keys that are unknown, no ranks, ranks that do not fit, or a layer
        that the scheme cannot take.
    """
    found: dict[str, LayerPlan] = {}
    for name, entry in entries.items():
        try:
            [scheme] = layer_schemes(entry, schemes)
            found[name] = _plan_entry(layers[name], entry, scheme, ranks, round_to)
        except (InvalidArgumentError, TypeError) as error:
            raise InvalidArgumentError(f"layer {name!r}: {error}") from None
    _check_shared(found.values())
    return found


def layer_schemes(entry: Entry | None, schemes: Sequence[str]) -> Sequence[str]:
    """Return the schemes a layer may have: that of its entry, or those of all.

    Raises
    ------
    InvalidArgumentError
        For an unknown scheme, or ranks in an entry that does not say of which scheme.
    """
    own = None if entry is None else entry.get("scheme")
    if own is None:
        if entry is not None and len(schemes) > 1:
            raise InvalidArgumentError(
                f"its entry must name a scheme: the ranks of {', '.join(schemes)} are not the same"
            )
        return schemes
    if own not in SCHEMES:
        raise unknown_name("scheme", own, SCHEMES)
    return (own,)


def press_where_smaller(
    layers: Mapping[str, Layer], scheme: str, ranks: Ranks, round_to: int
) -> tuple[dict[str, LayerPlan], dict[str, str]]:
    """Return the layers that a scheme makes smaller, and all others with the reason.

    Raises
    ------
    InvalidArgumentError
        Naming the layer whose weight a rule cannot use.
    """
    pressed: dict[str, LayerPlan] = {}
    kept: dict[str, str] = {}
    for name, layer in layers.items():
        found = _plan_if_smaller(layer, scheme, ranks, round_to)
        if isinstance(found, str):
            kept[name] = found
        else:
            pressed[name] = found
    return pressed, kept


def nothing_pressed_error(kept: Mapping[str, str]) -> InvalidArgumentError:
    """Return the error for a model of which nothing is pressed, with the reasons."""
    reasons = "".join(f"; {name!r}: {reason}" for name, reason in kept.items())
    return InvalidArgumentError(f"the model has no layer that can be pressed{reasons}")


def _plan_entry(
    layer: Layer, entry: Entry, scheme: str, ranks: Ranks | None, round_to: int
) -> LayerPlan:
    named = scheme_named(scheme)
    options = {key: value for key, value in entry.items() if key not in ("ranks", "scheme")}
    asked = entry.get("ranks", ranks)
    if asked is None:
        named.with_options(options)
        raise InvalidArgumentError("ranks are needed")
    obstacle = layer.obstacle(named)
    if obstacle is not None:
        raise InvalidArgumentError(f"it cannot be pressed by {scheme}: {obstacle}")
    spec = layer.spec(named)
    method, asked = named.read_entry(spec, options, asked)
    method.check(spec)
    return plan_with_ranks(
        layer, method, parse_rank_rule(asked), 1 if "ranks" in entry else round_to
    )


def _check_shared(layers: Iterable[LayerPlan]) -> None:
    """Raise unless all layers that share a core name the same shape for it."""
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


def _plan_if_smaller(layer: Layer, scheme: str, ranks: Ranks, round_to: int) -> LayerPlan | str:
    """Return the plan of a layer, or why it stays dense."""
    form, rule = scheme_named(scheme), parse_rank_rule(ranks)
    found, reason = applicable_schemes(layer, [form])
    if not found:
        return reason
    try:
        plan = plan_with_ranks(layer, form, rule, round_to)
    except InvalidArgumentError as error:
        if rule.needs_spectra:
            raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None
        return str(error)
    return refuse_no_gain(plan) or plan
