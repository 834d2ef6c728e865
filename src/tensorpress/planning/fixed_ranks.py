"""Layers that are pressed at given ranks: by overrides, or all by one rule."""

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
    """Return the override of every layer that has one.

    The exact name of a layer beats patterns, and a later pattern beats an earlier one. A warning
    names each override without effect.

    Parameters
    ----------
    overrides : mapping of str to mapping
        Overrides by name or pattern, as `tensorpress.plan` takes them.
    layers : mapping of str to Layer
        The layers that can be pressed.
    unpressed : mapping of str to str
        The other layers, with the reason.

    Raises
    ------
    InvalidArgumentError
        If a pattern matches nothing, or an override is not a mapping.
    """
    patterns: dict[str, str] = {}  # the pattern that applies, by layer
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
                "override %r has no effect: other overrides apply to all of its layers",
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
    """Return the plans of the layers with overrides, whether smaller or not.

    Parameters
    ----------
    layers : mapping of str to Layer
        The layers that can be pressed.
    entries : mapping of str to mapping
        The overrides of some layers.
    schemes : sequence of str
        The schemes of all layers.
    ranks : optional
        The ranks of all layers, for overrides without ranks.
    round_to : int
        ``ranks`` are rounded to multiples of it; ranks of an override are not.

    Raises
    ------
    InvalidArgumentError
        If an override has unknown keys or no ranks, ranks do not fit, or the scheme cannot press
        the layer, which the message names.
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
    """Return the schemes that may press a layer: that of its override, or those of all layers.

    Raises
    ------
    InvalidArgumentError
        If the scheme is unknown, or the override does not choose one of several schemes.
    """
    scheme = None if entry is None else entry.get("scheme")
    if scheme is None:
        if entry is not None and len(schemes) > 1:
            raise InvalidArgumentError(
                f"its override must name one of the schemes {', '.join(schemes)}"
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
        If the rule cannot use the weight of a layer, which the message names.
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
    """Return the error for a model in which nothing is pressed, with the reasons."""
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
        raise InvalidArgumentError("the override needs ranks")
    obstacle = layer.obstacle(method)
    if obstacle is not None:
        raise InvalidArgumentError(f"it cannot be pressed by {scheme}: {obstacle}")
    spec = layer.spec(method)
    method, ranks = method.read_entry(spec, options, ranks)
    method.check(spec)
    return plan_with_ranks(layer, method, parse_rank_rule(ranks), round_to)


def _check_shared(layers: Iterable[LayerPlan]) -> None:
    """Raise an error if layers with a shared core name different shapes for it."""
    cores: dict[str, set[Sizes]] = {}
    for layer in layers:
        if layer.method.shared:
            cores.setdefault(layer.scheme, set()).add(layer.ranks)
    for shapes in cores.values():
        if len(shapes) > 1:
            raise InvalidArgumentError(
                "layers that share a core must have equal ranks, not "
                f"{', '.join(sorted(map(format_shape, shapes)))}"
            )
