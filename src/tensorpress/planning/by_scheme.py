"""The layers that a scheme of the registry presses, and why it leaves the others."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.planning.layers import read_by_parents, tied_biases
from tensorpress.planning.plan import SchemePlan
from tensorpress.ranks import rank_rule
from tensorpress.schemes.base import Ranks
from tensorpress.schemes.layer import describe
from tensorpress.schemes.registry import scheme as scheme_named

SCHEME_KEYS = ("ranks", "scheme")
"""What an entry for a layer may say."""


def pressed_where_smaller(
    model: nn.Module, names: Collection[str], scheme: str, ranks: Ranks
) -> tuple[list[SchemePlan], dict[str, str]]:
    """Return the layers that a scheme makes smaller, and all others with the reason.

    Only rules that look at spectra look at the weights.

    Raises
    ------
    InvalidArgumentError
        Naming the layer whose weights a rule cannot use.
    """
    chosen, kept = [], {}
    tied = obstacles(model, scheme)
    for name in names:
        found = tied.get(name) or _smaller(name, model.get_submodule(name), scheme, ranks)
        if isinstance(found, str):
            kept[name] = found
        else:
            chosen.append(found)
    return chosen, kept


def given_ranks(
    name: str,
    layer: nn.Module,
    scheme: str,
    ranks: Ranks | None,
    options: Mapping[str, Any],
    blocked: Mapping[str, str],
) -> SchemePlan:
    """Return the plan of a layer as an entry asks for it, smaller or not.

    Raises
    ------
    InvalidArgumentError
        For unknown keys, no ranks, ranks that do not fit, or a layer the scheme cannot take.
    """
    for key in options:
        if key not in SCHEME_KEYS:
            raise unknown_name("key", key, SCHEME_KEYS)
    asked = options.get("ranks", ranks)
    if asked is None:
        raise InvalidArgumentError("ranks are needed")
    if name in blocked:
        raise InvalidArgumentError(f"it cannot be pressed by {scheme}: {blocked[name]}")
    chosen = scheme_named(scheme).choose_ranks(layer, asked)
    return SchemePlan(name, scheme, describe(layer), chosen)


def obstacles(model: nn.Module, scheme: str) -> dict[str, str]:
    """Return the layers whose place in the model forbids to press them by a scheme, and why."""
    read = read_by_parents(model) if scheme_named(scheme).form == "layer" else {}
    return tied_biases(model) | read


def _smaller(name: str, layer: nn.Module, scheme: str, ranks: Ranks) -> SchemePlan | str:
    """Return the plan of a layer, or why it stays dense."""
    form, rule = scheme_named(scheme), rank_rule(ranks)
    try:
        spec = describe(layer)
    except InvalidArgumentError as error:
        return str(error)
    reason = form.refusal(spec)
    if reason is not None:
        return f"{scheme} cannot take it: {reason}"
    try:
        chosen = form.choose_ranks(layer, rule)
    except InvalidArgumentError as error:
        if rule.needs_spectra:
            raise InvalidArgumentError(f"layer {name!r}: {error}") from None
        return str(error)
    params = form.params(spec, chosen)
    if params >= spec.params:
        return f"ranks {chosen} make {params:,} parameters of its {spec.params:,}: not smaller"
    return SchemePlan(name, scheme, spec, chosen)
