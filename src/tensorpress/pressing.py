"""Pressing: a plan and a dense model become a model whose weights are rebuilt from factors."""

from collections.abc import Sequence
from copy import deepcopy
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tensorpress.decompose.shared_core import shared_tucker
from tensorpress.errors import InvalidArgumentError, ModelMismatchError, unknown_name
from tensorpress.planning.plan import LayerPlan, Plan
from tensorpress.schemes.dimensions import by
from tensorpress.schemes.tucker_weight import (
    Factors,
    TuckerWeight,
    balanced,
    initial_std,
    stored_factors,
    tucker_weight,
)

Start = Literal["hooi", "glorot", "kaiming"]


def press(
    model: nn.Module, plan: Plan, *, start: Start = "hooi", seed: int = 0, inplace: bool = False
) -> nn.Module:
    """Replace the weights a plan names by parametrizations that rebuild them from factors.

    Parameters
    ----------
    model : nn.Module
        The dense model; left untouched unless ``inplace``.
    plan : Plan
        From `tensorpress.plan`, or read from a file.
    start : {"hooi", "glorot", "kaiming"}
        Decompose the model's weights (for training on, or as they are), or draw factors for
        training from scratch such that the rebuilt weights have that initializer's variance.
    seed : int
        Of the random starts; each layer draws from its own stream.
    inplace : bool
        Press ``model`` itself instead of a copy.

    Returns
    -------
    nn.Module
        The same layers and the same forward pass; ``layer.weight`` is computed.

    Raises
    ------
    ModelMismatchError
        Where the plan names a layer the model does not have, or of another shape.
    InvalidArgumentError
        For NaN or infinite weights (naming the layer) or an unknown start.

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
    """
    if start not in get_args(Start):
        raise unknown_name("start", start, get_args(Start))
    target = model if inplace else deepcopy(model)
    layers = [_find(target, layer) for layer in plan.layers]
    for module, layer in zip(layers, plan.layers, strict=True):
        if not bool(torch.isfinite(_weight(module)).all()):
            raise InvalidArgumentError(f"layer {layer.name!r} has NaN or infinite weights")
    tuckers = [
        TuckerWeight(
            layer.shape,
            layer.modes,
            layer.ranks,
            diagonal=layer.core == "diagonal",
            shared=layer.core == "shared",
        )
        for layer in plan.layers
    ]
    factors = _start_factors(layers, tuckers, plan, start, seed)
    core: Tensor | nn.Module | None = None
    for module, layer, tucker, values in zip(layers, plan.layers, tuckers, factors, strict=True):
        tucker.attach(module, values)
        if layer.core == "shared":
            held = stored_factors(module)
            core = core if core is not None else held.original0
            held.original0 = core
    return target


def materialize(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Replace factors by the dense weights they stand for, for inference.

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
        if tucker_weight(module) is not None:
            _leave_class_of_copies(module)
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return target


def _leave_class_of_copies(module: nn.Module) -> None:
    """Give a parametrized module a class of its own.

    Torch computes the weight in a property of a class made for the module, which a deep copy
    shares; removing the parametrization deletes the property, for all copies.
    """
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def _find(model: nn.Module, layer: LayerPlan) -> nn.Module:
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
    return module


def _start_factors(
    layers: list[nn.Module], tuckers: list[TuckerWeight], plan: Plan, start: Start, seed: int
) -> Sequence[Factors | None]:
    """Return factors a layer, None where the parametrization is to decompose the weight."""
    if start == "hooi":
        return _decomposed(layers, tuckers, plan)
    stds = [initial_std(_weight(module), start) for module in layers]
    core_stds = [tucker.balanced_std(std) for tucker, std in zip(tuckers, stds, strict=True)]
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in range(len(layers))]
    cores = list(map(TuckerWeight.draw_core, tuckers, core_stds, generators))
    sharing = _sharing(plan)
    if sharing:
        common = prod(core_stds[i] ** (1 / len(sharing)) for i in sharing)
        shared = cores[sharing[0]] * (common / core_stds[sharing[0]])
        cores = [shared if i in sharing else core for i, core in enumerate(cores)]
    return [
        tucker.draw(std, core, _weight(module), generator)
        for module, tucker, std, core, generator in zip(
            layers, tuckers, stds, cores, generators, strict=True
        )
    ]


def _decomposed(
    layers: list[nn.Module], tuckers: list[TuckerWeight], plan: Plan
) -> Sequence[Factors | None]:
    factors: list[Factors | None] = [None] * len(layers)
    sharing = _sharing(plan)
    if sharing:
        tensors = [tuckers[i].reshaped(_weight(layers[i])) for i in sharing]
        fit = shared_tucker(tensors, plan.layers[sharing[0]].ranks)
        core, matrices = balanced(fit.core, fit.factors)
        for index, own in zip(sharing, matrices, strict=True):
            factors[index] = (core, *own)
    return factors


def _sharing(plan: Plan) -> list[int]:
    return [i for i, layer in enumerate(plan.layers) if layer.core == "shared"]


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()
