"""Removal of ranks at which factors are zero."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.press.unpress import check_hooks
from tensorpress.schemes.layer_spec import Sizes
from tensorpress.schemes.parametrization import (
    FactorizedWeight,
    RankFactor,
    factorized_weight,
    stored_factors,
)
from tensorpress.schemes.pressed_layer import Pressed, layer_factors, pressed_form, pressed_forms
from tensorpress.schemes.registry import scheme
from tensorpress.utils.module_tree import ModuleTree, count_references, weight_name

logger = logging.getLogger("tensorpress.press")


def drop_zero_ranks(model: nn.Module) -> dict[str, Sizes]:
    """Remove the indices of ranks at which a factor of a pressed layer is zero, in place.

    Every index of a rank selects a slice of two or more factors. If one of these slices is zero,
    the others have no effect, and the index is removed. As this can make further slices zero, it is
    repeated until nothing changes. A core that several layers share loses the slices that are zero
    or that no layer uses. Ranks stay at least 1, and the model's outputs change only by rounding.

    Parameters
    ----------
    model : nn.Module
        A model with pressed layers of any scheme. Every group of a grouped layer loses the same
        number of indices. Layers that no plan describes, layers that share factors with others, and
        reduced Tucker factors, whose matrices are never zero, do not change; the logger
        ``tensorpress.press`` names them at level INFO. Factors that change their shape are new
        parameters, which need a new optimizer.

    Returns
    -------
    dict from str to tuple of int
        The new ranks of every layer whose ranks fell, by name.

    Raises
    ------
    InvalidArgumentError
        If hooks would be lost (the message names the layer), or if the model is itself a pressed
        layer that would be replaced. The model is then unchanged.

    Examples
    --------
    >>> from tensorpress.schemes.press_layer import press_layer
    >>> net = nn.Sequential(press_layer(nn.Linear(20, 10), "channel_svd", 5))
    >>> _ = net[0][1].weight.data[:, 2:4].zero_()
    >>> drop_zero_ranks(net)
    {'0': (3,)}
    """
    networks = list(_factor_networks(model))
    smaller = [_drop_zeros(network) for network in networks]
    changed = [new for old, new in zip(networks, smaller, strict=True) if new.ranks != old.ranks]
    for network in changed:
        _check_replaceable(model, network)
    tree = ModuleTree(model)
    for network in changed:
        _put_factors(network, tree)
    return {name: network.ranks for network in changed for name in network.layers}


@dataclass(frozen=True)
class _Network:
    """The tensor network of a layer, or of all layers that share a core.

    ``core`` has the factors that all layers share, and ``factors`` the other factors of each layer.
    A bond joins axes of several factors; ``bonds`` has the bond of every rank. The ranks around a
    diagonal core have the same bond.
    """

    layers: Mapping[str, tuple[nn.Module, str]]
    core: Sequence[RankFactor]
    factors: Sequence[Sequence[RankFactor]]
    bonds: Sizes

    @property
    def all_factors(self) -> list[RankFactor]:
        return [*self.core, *(factor for layer in self.factors for factor in layer)]

    @property
    def ranks(self) -> Sizes:
        sizes = {
            bond: factor.values.shape[axis]
            for factor in self.all_factors
            for axis, bond in factor.ranks.items()
        }
        return tuple(sizes[bond] for bond in self.bonds)

    def find_zeros(self, bond: int) -> Tensor:
        """Return a mask (groups, r) of the indices of a bond that have no effect."""
        unused = torch.stack([_find_zeros(layer, bond) for layer in self.factors]).all(0)
        return unused | _find_zeros(self.core, bond) if self.core else unused


def _find_zeros(factors: Sequence[RankFactor], bond: int) -> Tensor:
    masks = [
        (factor.values.movedim(axis, 1).unsqueeze(-1).flatten(2) == 0).all(2)
        for factor in factors
        for axis, number in factor.ranks.items()
        if number == bond
    ]
    return torch.stack(masks).any(0)


def _drop_zeros(network: _Network) -> _Network:
    while True:
        size = _count_nonzero(network)
        for bond in sorted(set(network.bonds)):
            zero = network.find_zeros(bond)
            core = [_drop_indices(factor, bond, zero) for factor in network.core]
            factors = [[_drop_indices(x, bond, zero) for x in layer] for layer in network.factors]
            network = replace(network, core=core, factors=factors)
        if _count_nonzero(network) == size:
            return network


def _count_nonzero(network: _Network) -> tuple[Sizes, int]:
    return network.ranks, sum(int(x.values.count_nonzero()) for x in network.all_factors)


def _drop_indices(factor: RankFactor, bond: int, zero: Tensor) -> RankFactor:
    """Return a factor without the zero indices of a bond."""
    # All groups keep as many indices as the group with the most nonzero ones, and at least one.
    count = max(1, int((~zero).sum(1).max()))
    indices = zero.int().argsort(dim=1, stable=True)[:, :count].sort(1).values
    values = factor.values
    for axis in (axis for axis, number in factor.ranks.items() if number == bond):
        moved = values.movedim(axis, 1)
        moved = moved.masked_fill(zero.reshape(*zero.shape, *(1,) * (moved.ndim - 2)), 0)
        groups = [group[i] for group, i in zip(moved, indices, strict=True)]
        values = torch.stack(groups).movedim(1, axis)
    return replace(factor, values=values)


def _factor_networks(model: nn.Module) -> Iterator[_Network]:
    """Yield the networks of all pressed layers that their ranks describe completely."""
    references = count_references(model)
    groups: dict[int, dict[str, tuple[nn.Module, str]]] = {}
    for place in ((n, m, k) for n, m in model.named_modules() for k in pressed_forms(m)):
        name, module, key = weight_name(place[0], place[2]), *place[1:]
        if not _has_plan(module):
            logger.info(
                "layer %s is unchanged: its scheme and ranks do not describe it completely", name
            )
        elif not _rank_factors(module, key):
            logger.info(
                "layer %s is unchanged: its scheme does not say which factors its ranks join", name
            )
        else:
            shared = scheme(pressed_forms(module)[key].scheme).shared
            group = layer_factors(module, key)[0] if shared else pressed_forms(module)[key]
            groups.setdefault(id(group), {})[name] = module, key
    for layers in groups.values():
        network = _build_network(layers)
        first = layer_factors(*next(iter(layers.values())))
        expected = {id(x): len(layers) for x in first[: len(network.core)]}
        parameters = {
            id(x)
            for layer, key in layers.values()
            for x in (
                layer.parameters() if isinstance(layer, Pressed) else layer_factors(layer, key)
            )
        }
        if any(references[key] > expected.get(key, 1) for key in parameters):
            logger.info(
                "layer %s is unchanged: it shares a parameter with another module",
                ", ".join(layers),
            )
        else:
            yield network


def _build_network(layers: Mapping[str, tuple[nn.Module, str]]) -> _Network:
    """Return the network of one layer, or of several that share their first factor."""
    form = pressed_form(*next(iter(layers.values())))
    assert form is not None
    factors = [_rank_factors(*place) for place in layers.values()]
    bonds = sorted({bond for factor in factors[0] for bond in factor.ranks.values()})
    if len(bonds) != len(form.ranks):
        bonds *= len(form.ranks)
    shared = int(scheme(form.scheme).shared)
    return _Network(layers, factors[0][:shared], [x[shared:] for x in factors], tuple(bonds))


def _rank_factors(layer: nn.Module, key: str) -> list[RankFactor]:
    form = pressed_form(layer, key)
    if isinstance(form, FactorizedWeight):
        return form.rank_factors([factor.detach() for factor in layer_factors(layer, key)])
    return [] if form is None else form.rank_factors()


def _has_plan(layer: nn.Module) -> bool:
    """Return whether a layer is exactly what its scheme builds for its ranks."""
    try:
        return bool(plan_from_model(layer).layers)
    except ModelMismatchError:
        return False


def _check_replaceable(model: nn.Module, network: _Network) -> None:
    for name, (layer, _) in network.layers.items():
        if isinstance(layer, Pressed):
            check_hooks(name, layer)
            if layer is model:
                raise InvalidArgumentError(
                    "a model that is itself the layer to replace cannot be changed in place: put "
                    "it into an nn.Sequential"
                )


def _put_factors(network: _Network, tree: ModuleTree) -> None:
    """Give the layers of a network their new factors."""
    core = [nn.Parameter(factor.values[0].contiguous()) for factor in network.core]
    for (layer, key), factors in zip(network.layers.values(), network.factors, strict=True):
        if isinstance(layer, Pressed):
            tree.replace(layer, _rebuild(layer, [x.values for x in factors], network.ranks))
            continue
        form, originals = factorized_weight(layer, key), stored_factors(layer, key)
        assert form is not None
        smaller = [*core, *(nn.Parameter(factor.values[0].contiguous()) for factor in factors)]
        for number, (new, old) in enumerate(zip(smaller, layer_factors(layer, key), strict=True)):
            setattr(originals, f"original{number}", new.requires_grad_(old.requires_grad))
        form.ranks = network.ranks


def _rebuild(layer: Pressed, factors: Sequence[Tensor], ranks: Sizes) -> Pressed:
    """Return a pressed layer of other ranks, with these factors."""
    like = next(layer.parameters()).detach()
    new = scheme(layer.scheme, layer.options).build(layer.spec, ranks, like=like)
    assert isinstance(new, Pressed)
    new.put_rank_factors(factors)
    bias, new_bias = layer.bias_parameter(), new.bias_parameter()
    if bias is not None and new_bias is not None:
        new_bias.data.copy_(bias)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(layer.get_parameter(name).requires_grad)
    new.relative_error, new.unfitted = layer.relative_error, layer.unfitted
    return new.train(layer.training)
