"""Planning: from a scheme and ranks, a number of parameters, or hand-given layers to a plan."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from math import prod
from typing import Any

from torch import nn

from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.planning.by_scheme import given_ranks, obstacles, pressed_where_smaller
from tensorpress.planning.layers import matching, pressable
from tensorpress.planning.plan import SCHEMES, TUCKER_SCHEMES, LayerPlan, Plan, PlannedLayer
from tensorpress.planning.tucker import check_shared, given_tucker, own_layers, shared_layers
from tensorpress.schemes.base import Ranks
from tensorpress.schemes.dimensions import Shape, smallest

Layers = Mapping[str, Mapping[str, Any]]


def plan(
    model: nn.Module,
    *,
    scheme: str = "ada_tucker",
    ranks: Ranks | None = None,
    params: int | None = None,
    layers: Layers | None = None,
    skip: Sequence[str] = (),
) -> Plan:
    """Plan how a model's layers are decomposed.

    Nothing is computed, except the spectra of the weights where a rank rule looks at them.

    Parameters
    ----------
    model : nn.Module
        Any model.
    scheme : str
        A name of `SCHEMES`. "ada_tucker" and "scada_tucker" take ``params`` or ``layers``, all
        others ``ranks`` or ``layers`` or both.
    ranks
        What `press_layer` takes: a tuple, an int, a float in (0, 1], "evbmf", "energy:0.9" or a
        rule. All layers that the scheme can take and makes smaller are pressed; the others are
        kept dense with the reason.
    params : int, optional
        Parameters the whole pressed model may have, biases and norms included; modes and ranks are
        chosen (`tensorpress.schemes.dimensions`).
    layers : mapping of str to mapping, optional
        A layer's name, or a pattern with ``*``, to what is done with it: ``ranks``, and ``scheme``
        where it is not the one of all layers. For (s)cada_tucker ``modes`` (a list of sizes, or
        "original" for the weight's own axes), ``ranks`` (a list, or one number for all modes) and
        optionally ``diagonal: true`` (CP). Where two entries name a layer, the later one holds.
        Without ``ranks`` for all, other layers stay dense.
    skip : sequence of str
        Names or patterns of layers to keep dense.

    Raises
    ------
    InvalidArgumentError
        For an unknown scheme, a pattern that matches no layer, an entry that cannot be done, modes
        or ranks that do not fit, a budget that cannot be met, or nothing to press.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))
    >>> plan(net, params=3000).params <= 3000
    True
    >>> print(plan(net, scheme="channel_svd", ranks=0.1))
    layer          scheme       weight   ranks    dense  stored
    0              channel_svd  500×800  50     400,000  65,000
    2              channel_svd  10×500   1        5,000     510
    (not pressed)                                   510     510
    total                                       405,510  66,020
    """
    if scheme not in SCHEMES:
        raise unknown_name("scheme", scheme, SCHEMES)
    check_target(scheme, ranks=ranks, params=params, layers=layers)
    shapes, kept = pressable(model)
    for pattern in skip:
        named = matching(pattern, {**shapes, **kept}, kept)
        kept = dict.fromkeys(named, f"skipped by {pattern!r}") | kept
    shapes = {name: shape for name, shape in shapes.items() if name not in kept}
    total = sum(p.numel() for p in model.parameters())
    chosen: Sequence[PlannedLayer]
    if params is not None:
        chosen, others = _within(params, total, shapes, kept, scheme)
    else:
        chosen, others = _given(model, shapes, kept, scheme, ranks, layers or {})
    other = total - sum(layer.dense_params for layer in chosen)
    return Plan(scheme, tuple(chosen), kept | others, other)


def check_target(scheme: str, *, ranks: object, params: object, layers: object) -> None:
    """Raise unless what is given says how far a scheme is to press; None is not given.

    Raises
    ------
    InvalidArgumentError
        With what the scheme takes.
    """
    if scheme in TUCKER_SCHEMES:
        if ranks is not None:
            raise InvalidArgumentError(
                f"{scheme} takes no ranks for all layers: give params, or layers with modes and "
                "ranks of their own"
            )
        if (params is None) == (layers is None):
            raise InvalidArgumentError(
                f"give either params or layers: {scheme} needs a number, or shapes"
            )
    elif params is not None:
        raise InvalidArgumentError(
            f"{scheme} takes no params, which only {' and '.join(TUCKER_SCHEMES)} do: give ranks, "
            "or layers with ranks of their own"
        )
    elif ranks is None and layers is None:
        raise InvalidArgumentError(f"give ranks for {scheme}, or layers with ranks of their own")


def _within(
    params: int, total: int, shapes: Mapping[str, Shape], kept: Mapping[str, str], scheme: str
) -> tuple[list[LayerPlan], dict[str, str]]:
    """Choose modes and ranks for a budget; layers too small to gain stay dense."""
    tiny = [name for name, shape in shapes.items() if smallest(shape) >= prod(shape)]
    others = dict.fromkeys(tiny, "too small to be made smaller")
    shapes = {name: shape for name, shape in shapes.items() if name not in others}
    if not shapes:
        raise _nothing({**kept, **others})
    budget = params - (total - sum(map(prod, shapes.values())))
    return (shared_layers if scheme == "scada_tucker" else own_layers)(shapes, budget), others


def _given(
    model: nn.Module,
    shapes: Mapping[str, Shape],
    kept: Mapping[str, str],
    scheme: str,
    ranks: Ranks | None,
    layers: Layers,
) -> tuple[list[PlannedLayer], dict[str, str]]:
    """Do what the entries say, then press all other layers where there are ranks for all."""
    entries: dict[str, Mapping[str, Any]] = {}
    for pattern, options in layers.items():
        entries |= dict.fromkeys(matching(pattern, shapes, kept), options)
    chosen: dict[str, PlannedLayer] = {}
    obstacles_to = cache(partial(obstacles, model))
    for name, options in entries.items():
        try:
            own = _scheme_of(options, scheme)
            if own in TUCKER_SCHEMES:
                chosen[name] = given_tucker(name, shapes[name], own, options)
            else:
                chosen[name] = given_ranks(
                    name, model.get_submodule(name), own, ranks, options, obstacles_to(own)
                )
        except (InvalidArgumentError, TypeError) as error:
            raise InvalidArgumentError(f"layer {name!r}: {error}") from None
    check_shared([layer for layer in chosen.values() if isinstance(layer, LayerPlan)])
    rest = [name for name in shapes if name not in chosen]
    others = dict.fromkeys(rest, "not named in layers")
    if ranks is not None:
        found, others = pressed_where_smaller(model, rest, scheme, ranks)
        chosen |= {layer.name: layer for layer in found}
        if not chosen:
            raise _nothing({**kept, **others})
    return [chosen[name] for name in shapes if name in chosen], others


def _scheme_of(options: Mapping[str, Any], scheme: str) -> str:
    """Return the scheme of an entry: its own, or that of all layers."""
    if not isinstance(options, Mapping):
        raise InvalidArgumentError(f"expected a mapping such as {{'ranks': 8}}, got {options!r}")
    own: str = options.get("scheme", scheme)
    if own not in SCHEMES:
        raise unknown_name("scheme", own, SCHEMES)
    return own


def _nothing(kept: Mapping[str, str]) -> InvalidArgumentError:
    reasons = "".join(f"; {name!r}: {reason}" for name, reason in kept.items())
    return InvalidArgumentError(f"the model has no layer that can be pressed{reasons}")
