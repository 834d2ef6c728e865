"""Pressing: a plan and a dense model become a model of fewer parameters."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError, ModelMismatchError, unknown_name
from tensorpress.planning.plan import LayerPlan, Plan, PlannedLayer, SchemePlan
from tensorpress.schemes.dimensions import by
from tensorpress.schemes.factorized_weight import (
    Factors,
    factorized_weight,
    rebuild,
    stored_factors,
)
from tensorpress.schemes.layer import describe
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.tucker_weight import TuckerWeight
from tensorpress.starts import decomposed, drawn, drawn_layer, unfilled, zeros

Start = Literal["hooi", "glorot", "kaiming"]


def press(
    model: nn.Module, plan: Plan, *, start: Start = "hooi", seed: int = 0, inplace: bool = False
) -> nn.Module:
    """Press the layers a plan names: replace them by chains of layers, or their weights by factors.

    Parameters
    ----------
    model : nn.Module
        The dense model; left untouched unless ``inplace``.
    plan : Plan
        From `tensorpress.plan`, or read from a file.
    start : {"hooi", "glorot", "kaiming"}
        Decompose the model's weights (for training on, or as they are), or draw factors for
        training from scratch such that the weights they stand for have that initializer's variance.
    seed : int
        Of the random starts; each layer draws from its own stream.
    inplace : bool
        Press ``model`` itself instead of a copy. A model that is itself the layer to replace
        cannot be: `tensorpress.schemes.press_layer.press_layer` presses it.

    Returns
    -------
    nn.Module
        The same model with pressed layers; a layer that is used in several places stays one.

    Raises
    ------
    ModelMismatchError
        Where the plan names a layer the model does not have, or another one than it expects.
    InvalidArgumentError
        For NaN or infinite weights or ranks that do not fit (naming the layer), or an unknown
        start.

    References
    ----------
    Zhong, Wei, Lin, Zhang (2019), "ADA-Tucker", Alg. 1 and sec. 4 (the three starts).

    Examples
    --------
    >>> from tensorpress.planning import plan
    >>> net = nn.Sequential(nn.Linear(80, 50))
    >>> pressed = press(net, plan(net, params=500))
    >>> pressed[0].weight.shape
    torch.Size([50, 80])
    >>> press(net, plan(net, scheme="channel_svd", ranks=4))
    Sequential(
      (0): PressedLayer(
        channel_svd, ranks=(4,)
        (0): Linear(in_features=80, out_features=4, bias=False)
        (1): Linear(in_features=4, out_features=50, bias=True)
      )
    )
    """
    if start not in get_args(Start):
        raise unknown_name("start", start, get_args(Start))
    target = model if inplace else deepcopy(model)
    layers = [_find(target, layer) for layer in plan.layers]
    for layer, module in zip(plan.layers, layers, strict=True):
        _check_weight(layer, _weight(module))
        if inplace and module is target and isinstance(layer, SchemePlan):
            raise InvalidArgumentError(
                f"the model is itself the {layer.spec.kind} to be replaced, which cannot be done "
                "in place: use tensorpress.schemes.press_layer.press_layer"
            )
    streams = [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in range(len(layers))]

    def pressed(place: int, layer: SchemePlan) -> nn.Module:
        if start == "hooi":
            return scheme(layer.scheme).press(layers[place], layer.ranks)
        return drawn_layer(layer, layers[place], start, streams[place])

    def factors(places: Sequence[int], tuckers: Sequence[TuckerWeight]) -> Sequence[Factors | None]:
        weights = [_weight(layers[place]) for place in places]
        if start == "hooi":
            return decomposed(tuckers, weights)
        return drawn(tuckers, weights, start, [streams[place] for place in places])

    return _assembled(target, plan, layers, pressed, factors)


def skeleton(model: nn.Module, plan: Plan) -> nn.Module:
    """Press a model in place without computing anything: its factors have no values yet.

    Parameters
    ----------
    model : nn.Module
        Dense; its weights do not matter.
    plan : Plan
        What it is to hold.

    Returns
    -------
    nn.Module
        The model, or the layer in its place where the model is itself the only layer.

    Raises
    ------
    ModelMismatchError
        Where the plan names a layer the model does not have, or another one than it expects.

    Examples
    --------
    >>> from tensorpress.planning import plan
    >>> net = nn.Sequential(nn.Linear(80, 50))
    >>> skeleton(net, plan(net, scheme="channel_svd", ranks=4))[0][0].weight.shape
    torch.Size([4, 80])
    """
    layers = [_find(model, layer) for layer in plan.layers]
    return _assembled(
        model,
        plan,
        layers,
        lambda place, layer: unfilled(layer, layers[place]),
        lambda places, tuckers: [
            zeros(tucker, _weight(layers[place]))
            for place, tucker in zip(places, tuckers, strict=True)
        ],
    )


def materialize(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Replace factors by the dense weights they stand for, for inference.

    Layers that were replaced by chains of layers stay: as they are they multiply less.

    Parameters
    ----------
    model : nn.Module
        A pressed model; left untouched unless ``inplace``.

    Examples
    --------
    >>> from tensorpress.planning import plan
    >>> net = nn.Sequential(nn.Linear(80, 50))
    >>> dense = materialize(press(net, plan(net, params=500)))
    >>> type(dense[0].weight).__name__
    'Parameter'
    """
    target = model if inplace else deepcopy(model)
    for module in target.modules():
        if factorized_weight(module) is not None:
            rebuild(module)
    return target


def _assembled(
    model: nn.Module,
    plan: Plan,
    layers: Sequence[nn.Module],
    pressed: Callable[[int, SchemePlan], nn.Module],
    factors: Callable[[Sequence[int], Sequence[TuckerWeight]], Sequence[Factors | None]],
) -> nn.Module:
    """Put together a pressed model; ``pressed`` and ``factors`` count the plan's layers."""
    replaced: dict[int, nn.Module] = {}
    tuckers: dict[int, TuckerWeight] = {}
    for place, layer in enumerate(plan.layers):
        try:
            if isinstance(layer, SchemePlan):
                replaced[id(layers[place])] = pressed(place, layer)
            else:
                tuckers[place] = _tucker(layer)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"layer {layer.name!r}: {error}") from None
    values = factors(list(tuckers), list(tuckers.values()))
    core: Tensor | nn.Module | None = None
    for (place, tucker), own in zip(tuckers.items(), values, strict=True):
        tucker.attach(layers[place], own)
        if tucker.shared:
            held = stored_factors(layers[place])
            core = core if core is not None else held.original0
            held.original0 = core
    return _replaced(model, replaced)


def _tucker(layer: LayerPlan) -> TuckerWeight:
    return TuckerWeight(
        layer.shape,
        layer.modes,
        layer.ranks,
        diagonal=layer.core == "diagonal",
        shared=layer.core == "shared",
    )


def _replaced(model: nn.Module, new: dict[int, nn.Module]) -> nn.Module:
    """Put new modules in the place of others, known by their ids, wherever these are held."""
    for module in list(model.modules()):
        for key, child in module._modules.items():
            if id(child) in new:
                module._modules[key] = new[id(child)]
    return new.get(id(model), model)


def _find(model: nn.Module, layer: PlannedLayer) -> nn.Module:
    """Return the layer a plan names, or raise where it is another one than the plan expects."""
    try:
        module = model.get_submodule(layer.name)
    except AttributeError:
        raise ModelMismatchError(
            f"the plan names a layer {layer.name!r}, which this model does not have"
        ) from None
    weight = module._parameters.get("weight")
    if weight is None or tuple(weight.shape) != layer.shape:
        found = "no plain weight" if weight is None else f"a weight {by(weight.shape)}"
        raise ModelMismatchError(
            f"layer {layer.name!r} has {found} in this model; the plan expects {by(layer.shape)}"
        )
    if isinstance(layer, SchemePlan):
        _check_spec(module, layer)
    return module


def _check_spec(module: nn.Module, layer: SchemePlan) -> None:
    try:
        found = describe(module)
    except InvalidArgumentError as error:
        raise ModelMismatchError(f"layer {layer.name!r}: {error}") from None
    for field in fields(found):
        has, expected = getattr(found, field.name), getattr(layer.spec, field.name)
        if has != expected:
            raise ModelMismatchError(
                f"layer {layer.name!r} has {field.name} {has!r} in this model; the plan expects "
                f"{expected!r}"
            )


def _check_weight(layer: PlannedLayer, weight: Tensor) -> None:
    if weight.is_meta:
        raise InvalidArgumentError(f"layer {layer.name!r} is on the meta device: it has no values")
    if not bool(torch.isfinite(weight).all()):
        raise InvalidArgumentError(f"layer {layer.name!r} has NaN or infinite weights")


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()
