"""Dropping the ranks of pressed layers that rounding has made zero."""

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
from tensorpress.schemes.pressed_layer import Pressed, layer_factors, pressed_form
from tensorpress.schemes.registry import scheme
from tensorpress.utils.module_tree import ModuleTree, count_references

logger = logging.getLogger("tensorpress.press")


def drop_zero_ranks(model: nn.Module) -> dict[str, Sizes]:
    """Lower the ranks of pressed layers by what is all zeros in their factors, in place.

    An index of a rank joins two or more factors. Where the slice of one of them is zero the others'
    slices do nothing, and the index goes; that may leave further slices zero, until nothing
    changes. A core that several layers share loses a slice where it is zero or no layer uses it.
    Ranks stay at least 1. The model computes the same as before, to rounding.

    Parameters
    ----------
    model : nn.Module
        Its pressed layers may be of any scheme, with groups too: every group loses as many indices
        as the one that can lose the fewest. Left are layers that no plan describes, those whose
        factors others hold as well, and reduced Tucker factors, whose matrices are never zero; the
        logger ``tensorpress.press`` tells so at level INFO. Factors of another shape are new
        parameters: an optimizer must be made again.

    Returns
    -------
    dict from str to tuple of int
        The ranks of every layer that has fewer now, by its name.

    Raises
    ------
    InvalidArgumentError
        For hooks that would be lost (naming the layer), or where the model is itself a pressed
        layer that would have to be replaced. The model is then untouched.

    Examples
    --------
    >>> from tensorpress.schemes.press_layer import press_layer
    >>> net = nn.Sequential(press_layer(nn.Linear(20, 10), "channel_svd", 5))
    >>> _ = net[0][1].weight.data[:, 2:4].zero_()
    >>> drop_zero_ranks(net)
    {'0': (3,)}
    """
    changes = []
    for network in _networks(model):
        smaller = _shrink(network)
        if smaller.ranks != network.ranks:
            changes.append(smaller)
    for network in changes:
        _check_replaceable(model, network)
    holders = ModuleTree(model)
    for network in changes:
        _put(network, holders)
    return {name: network.ranks for network in changes for name in network.layers}


@dataclass(frozen=True)
class _Network:
    """The factors of a layer, or of all layers that share a core.

    ``common`` are the factors that all layers hold, ``own`` those of each. A bond is what a rank's
    indices join; ``order`` has that of every rank: a diagonal core has several ranks and one bond.
    """

    layers: Mapping[str, nn.Module]
    common: Sequence[RankFactor]
    own: Sequence[Sequence[RankFactor]]
    order: Sizes

    @property
    def factors(self) -> list[RankFactor]:
        return [*self.common, *(factor for layer in self.own for factor in layer)]

    @property
    def ranks(self) -> Sizes:
        sizes = {
            bond: factor.values.shape[axis]
            for factor in self.factors
            for axis, bond in factor.ranks.items()
        }
        return tuple(sizes[bond] for bond in self.order)

    def dead(self, bond: int) -> Tensor:
        """Return which indices (groups, r) of a bond stand for nothing."""
        unused = torch.stack([_zero(layer, bond) for layer in self.own]).all(0)
        return unused | _zero(self.common, bond) if self.common else unused


def _zero(factors: Sequence[RankFactor], bond: int) -> Tensor:
    """Return at which indices (groups, r) of a bond any factor is zero."""
    found = [
        (factor.values.movedim(axis, 1).unsqueeze(-1).flatten(2) == 0).all(2)
        for factor in factors
        for axis, number in factor.ranks.items()
        if number == bond
    ]
    return torch.stack(found).any(0)


def _shrink(network: _Network) -> _Network:
    """Return a network without the indices that stand for nothing."""
    while True:
        before = network
        for bond in sorted(set(network.order)):
            dead = network.dead(bond)
            common = [_drop_dead(factor, bond, dead) for factor in network.common]
            own = [[_drop_dead(factor, bond, dead) for factor in layer] for layer in network.own]
            network = replace(network, common=common, own=own)
        if _extent(network) == _extent(before):
            return network


def _extent(network: _Network) -> tuple[Sizes, int]:
    return network.ranks, sum(int(factor.values.count_nonzero()) for factor in network.factors)


def _drop_dead(factor: RankFactor, bond: int, dead: Tensor) -> RankFactor:
    """Return a factor without dead indices; those that have to stay become zero."""
    left = max(1, int((~dead).sum(1).max()))
    kept = dead.int().argsort(dim=1, stable=True)[:, :left].sort(1).values
    values = factor.values
    for axis in (axis for axis, number in factor.ranks.items() if number == bond):
        groups = zip(values.movedim(axis, 1), dead, kept, strict=True)
        cut = [_zero_at(group, gone)[indices] for group, gone, indices in groups]
        values = torch.stack(cut).movedim(1, axis)
    return replace(factor, values=values)


def _zero_at(values: Tensor, at: Tensor) -> Tensor:
    return values.masked_fill(at.reshape(-1, *(1,) * (values.ndim - 1)), 0)


def _networks(model: nn.Module) -> Iterator[_Network]:
    """Yield the factors of all pressed layers that can be made again from their ranks."""
    held_by = count_references(model)
    groups: dict[int, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        form = pressed_form(module)
        if form is None:
            continue
        if not _describable(module):
            logger.info("layer %s is left: its ranks do not say what it is", name)
        elif not _rank_factors(module):
            logger.info("layer %s is left: what its ranks join is not known", name)
        else:
            shared = scheme(form.scheme).shared
            groups.setdefault(id(layer_factors(module)[0] if shared else module), {})[name] = module
    for layers in groups.values():
        network = _network(layers)
        core, *_ = map(layer_factors, layers.values())
        most = {id(x): len(layers) for x in core[: len(network.common)]}
        held = {id(x) for layer in layers.values() for x in _new_parameters(layer)}
        if any(held_by[key] > most.get(key, 1) for key in held):
            logger.info("layer %s is left: others hold a parameter of it", ", ".join(layers))
        else:
            yield network


def _network(layers: Mapping[str, nn.Module]) -> _Network:
    """Return the factors of a layer, or of layers that share the first of them."""
    form = pressed_form(next(iter(layers.values())))
    assert form is not None
    factors = list(map(_rank_factors, layers.values()))
    bonds = sorted({bond for factor in factors[0] for bond in factor.ranks.values()})
    order = bonds if len(bonds) == len(form.ranks) else bonds * len(form.ranks)
    shared = int(scheme(form.scheme).shared)
    own = [layer[shared:] for layer in factors]
    return _Network(layers, factors[0][:shared], own, tuple(order))


def _new_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a layer of other ranks has anew."""
    return list(layer.parameters()) if isinstance(layer, Pressed) else layer_factors(layer)


def _rank_factors(layer: nn.Module) -> list[RankFactor]:
    form = pressed_form(layer)
    if isinstance(form, FactorizedWeight):
        return form.rank_factors([factor.detach() for factor in layer_factors(layer)])
    return [] if form is None else form.rank_factors()


def _describable(layer: nn.Module) -> bool:
    """Whether a layer is what its scheme makes of its ranks."""
    try:
        return bool(plan_from_model(layer).layers)
    except ModelMismatchError:
        return False


def _check_replaceable(model: nn.Module, network: _Network) -> None:
    for name, layer in network.layers.items():
        if isinstance(layer, Pressed):
            check_hooks(name, layer)
            if layer is model:
                raise InvalidArgumentError(
                    "the model is itself the layer to be replaced, which cannot be done in place: "
                    "put it into an nn.Sequential"
                )


def _put(network: _Network, holders: ModuleTree) -> None:
    """Give layers their smaller factors."""
    core = [nn.Parameter(factor.values[0].contiguous()) for factor in network.common]
    for layer, own in zip(network.layers.values(), network.own, strict=True):
        if isinstance(layer, Pressed):
            holders.replace(layer, _rebuild(layer, [f.values for f in own], network.ranks))
            continue
        form, held = factorized_weight(layer), stored_factors(layer)
        assert form is not None
        smaller = [*core, *(nn.Parameter(factor.values[0].contiguous()) for factor in own)]
        for number, (new, old) in enumerate(zip(smaller, layer_factors(layer), strict=True)):
            setattr(held, f"original{number}", new.requires_grad_(old.requires_grad))
        form.ranks = network.ranks


def _rebuild(layer: Pressed, values: Sequence[Tensor], ranks: Sizes) -> Pressed:
    """Return a pressed layer of other ranks with given factors."""
    like, bias = next(layer.parameters()).detach(), layer.bias_parameter()
    new = scheme(layer.scheme, layer.options).build(layer.spec, ranks, like=like)
    assert isinstance(new, Pressed)
    new.put_rank_factors(values)
    held = new.bias_parameter()
    if bias is not None and held is not None:
        held.data.copy_(bias)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(layer.get_parameter(name).requires_grad)
    new.relative_error = layer.relative_error
    return new.train(layer.training)
