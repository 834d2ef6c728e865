"""Dropping the ranks of pressed layers that rounding has made zero."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.press.unpress import check_hooks
from tensorpress.schemes.base import layer_bias
from tensorpress.schemes.chain_builder import PressedLayer
from tensorpress.schemes.channel_pruning import PrunedLayer
from tensorpress.schemes.layer_spec import Sizes, spec_of, to_canonical
from tensorpress.schemes.parametrization import factorized_weight, stored_factors
from tensorpress.schemes.pressed_layer import Composed, Pressed
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.tt_conv import TTConv
from tensorpress.schemes.tt_weight import TTWeight
from tensorpress.schemes.tucker_weight import TuckerWeight
from tensorpress.utils.module_tree import Holders, count_references

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
        smaller = _shrunk(network)
        if smaller.ranks != network.ranks:
            changes.append(smaller)
    for network in changes:
        _check_replaceable(model, network)
    holders = Holders(model)
    for network in changes:
        _put(network, holders)
    return {name: network.ranks for network in changes for name in network.layers}


@dataclass(frozen=True)
class _Factor:
    """A factor (groups, …), and which bond each of some of its axes is: a rank's indices."""

    values: Tensor
    bonds: Mapping[int, int]


@dataclass(frozen=True)
class _Network:
    """The factors of a layer, or of all layers that share a core.

    ``common`` are the factors that all layers hold, ``own`` those of each. ``order`` has the bond
    of every rank: a diagonal core has several ranks and one bond.
    """

    layers: Mapping[str, nn.Module]
    common: Sequence[_Factor]
    own: Sequence[Sequence[_Factor]]
    order: Sizes

    @property
    def factors(self) -> list[_Factor]:
        return [*self.common, *(factor for layer in self.own for factor in layer)]

    @property
    def ranks(self) -> Sizes:
        sizes = {
            bond: factor.values.shape[axis]
            for factor in self.factors
            for axis, bond in factor.bonds.items()
        }
        return tuple(sizes[bond] for bond in self.order)

    def dead(self, bond: int) -> Tensor:
        """Return which indices (groups, r) of a bond stand for nothing."""
        unused = torch.stack([_zero(layer, bond) for layer in self.own]).all(0)
        return unused | _zero(self.common, bond) if self.common else unused


def _zero(factors: Sequence[_Factor], bond: int) -> Tensor:
    """Return at which indices (groups, r) of a bond any factor is zero."""
    found = [
        (factor.values.movedim(axis, 1).unsqueeze(-1).flatten(2) == 0).all(2)
        for factor in factors
        for axis, number in factor.bonds.items()
        if number == bond
    ]
    return torch.stack(found).any(0)


def _shrunk(network: _Network) -> _Network:
    """Return a network without the indices that stand for nothing."""
    while True:
        before = network
        for bond in sorted(set(network.order)):
            dead = network.dead(bond)
            common = [_without(factor, bond, dead) for factor in network.common]
            own = [[_without(factor, bond, dead) for factor in layer] for layer in network.own]
            network = replace(network, common=common, own=own)
        if _extent(network) == _extent(before):
            return network


def _extent(network: _Network) -> tuple[Sizes, int]:
    return network.ranks, sum(int(factor.values.count_nonzero()) for factor in network.factors)


def _without(factor: _Factor, bond: int, dead: Tensor) -> _Factor:
    """Return a factor without dead indices; those that have to stay become zero."""
    left = max(1, int((~dead).sum(1).max()))
    kept = dead.int().argsort(dim=1, stable=True)[:, :left].sort(1).values
    values = factor.values
    for axis in (axis for axis, number in factor.bonds.items() if number == bond):
        groups = zip(values.movedim(axis, 1), dead, kept, strict=True)
        cut = [_zeroed(group, gone)[indices] for group, gone, indices in groups]
        values = torch.stack(cut).movedim(1, axis)
    return replace(factor, values=values)


def _zeroed(values: Tensor, at: Tensor) -> Tensor:
    return values.masked_fill(at.reshape(-1, *(1,) * (values.ndim - 1)), 0)


def _networks(model: nn.Module) -> Iterator[_Network]:
    """Yield the factors of all pressed layers that can be made again from their ranks."""
    held_by = count_references(model)
    sharing: dict[int, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        weight = factorized_weight(module)
        if isinstance(weight, TuckerWeight) and weight.reduced:
            logger.info("layer %s is left: its matrices have rows that are fixed", name)
        elif isinstance(weight, TuckerWeight):
            sharing.setdefault(id(stored_factors(module).original0), {})[name] = module
        elif isinstance(weight, TTWeight) or isinstance(module, Pressed):
            held = _factors(module) if isinstance(weight, TTWeight) else module.parameters()
            if any(held_by[id(parameter)] > 1 for parameter in held):
                logger.info("layer %s is left: others hold a parameter of it", name)
            elif _describable(module):
                yield _of_layer(name, module)
            else:
                logger.info("layer %s is left: its ranks do not say what it is", name)
    for layers in sharing.values():
        cores, *matrices = zip(*map(_factors, layers.values()), strict=True)
        alone = all(held_by[id(m)] == 1 for mode in matrices for m in mode)
        if alone and held_by[id(cores[0])] == len(layers):
            yield _of_tuckers(layers)
        else:
            logger.info("layer %s is left: others hold a factor of it", ", ".join(layers))


def _describable(layer: nn.Module) -> bool:
    """Whether a layer is what its scheme makes of its ranks."""
    try:
        return bool(plan_from_model(layer).layers)
    except ModelMismatchError:
        return False


def _factors(layer: nn.Module) -> list[nn.Parameter]:
    """Return the factors of a pressed layer."""
    bias = layer_bias(layer)
    return [parameter for parameter in layer.parameters() if parameter is not bias]


def _of_layer(name: str, layer: nn.Module) -> _Network:
    if isinstance(layer, PressedLayer):
        factors = _of_chain(layer)
    elif isinstance(layer, PrunedLayer):
        factors = _of_pruned(layer)
    else:
        factors = _of_train(layer)
    bonds = {bond for factor in factors for bond in factor.bonds.values()}
    return _Network({name: layer}, [], [factors], tuple(sorted(bonds)))


def _of_chain(layer: PressedLayer) -> list[_Factor]:
    """Return the kernels of a chain, which has a rank for each of its joints or one for all."""
    last, groups = len(layer) - 1, layer.spec.groups
    factors = []
    for number, (part, stage) in enumerate(zip(layer, layer.stages, strict=True)):
        weight = part.get_parameter("weight").detach()
        kernel = to_canonical(weight, stage.groups, flipped=spec_of(part).flipped)
        inner = stage.groups // groups
        joints = {1: number} if number < last else {}
        if inner > 1:  # depthwise: one channel in, one out, as many as the rank
            kernel = kernel.reshape(groups, inner, *kernel.shape[3:])
        elif number > 0:
            joints[2] = number - 1
        one = len(layer.ranks) == 1
        bonds = {axis: 0 if one else joint for axis, joint in joints.items()}
        factors.append(_Factor(kernel, bonds))
    return factors


def _of_pruned(layer: PrunedLayer) -> list[_Factor]:
    """Return the kernels, whose channels are a rank as well, and after them their choice."""
    bonds = ({2: 0}, {1: 1}, {2: 1})
    kernels = (kernel.detach() for kernel in layer.kernels())
    choice = layer.chosen() + 1  # zero is what stands for nothing
    return [*map(_Factor, kernels, bonds), _Factor(choice, {1: 0})]


def _of_train(layer: nn.Module) -> list[_Factor]:
    """Return the TT-cores of a layer or of its weight, (1, r, …, r')."""
    cores = [parameter.detach() for parameter in _factors(layer)]
    if isinstance(layer, TTConv):  # its filters (r, *kernel) come first
        cores[0] = cores[0].flatten(1).mT.unsqueeze(0)
    factors = []
    for number, core in enumerate(cores):
        before = {1: number - 1} if number > 0 else {}
        after = {core.ndim: number} if number < len(cores) - 1 else {}
        factors.append(_Factor(core.unsqueeze(0), before | after))
    return factors


def _of_tuckers(layers: Mapping[str, nn.Module]) -> _Network:
    held = [[p.detach().unsqueeze(0) for p in _factors(layer)] for layer in layers.values()]
    weight = factorized_weight(next(iter(layers.values())))
    assert isinstance(weight, TuckerWeight)
    order = (0,) * len(weight.ranks) if weight.diagonal else tuple(range(len(weight.ranks)))
    core = _Factor(held[0][0], {axis: axis - 1 for axis in range(1, held[0][0].ndim)})
    own = [
        [_Factor(matrix, {2: bond}) for matrix, bond in zip(matrices, order, strict=True)]
        for _, *matrices in held
    ]
    return _Network(layers, [core], own, order)


def _check_replaceable(model: nn.Module, network: _Network) -> None:
    for name, layer in network.layers.items():
        if isinstance(layer, Pressed):
            check_hooks(name, layer)
            if layer is model:
                raise InvalidArgumentError(
                    "the model is itself the layer to be replaced, which cannot be done in place: "
                    "put it into an nn.Sequential"
                )


def _put(network: _Network, holders: Holders) -> None:
    """Give layers their smaller factors."""
    core = [nn.Parameter(factor.values[0].contiguous()) for factor in network.common]
    for layer, own in zip(network.layers.values(), network.own, strict=True):
        if isinstance(layer, Pressed):
            holders.replace(layer, _rebuilt(layer, [f.values for f in own], network.ranks))
            continue
        weight, held = factorized_weight(layer), stored_factors(layer)
        assert isinstance(weight, TuckerWeight | TTWeight)
        smaller = [*core, *(nn.Parameter(factor.values[0].contiguous()) for factor in own)]
        for number, (new, old) in enumerate(zip(smaller, _factors(layer), strict=True)):
            setattr(held, f"original{number}", new.requires_grad_(old.requires_grad))
        weight.ranks = network.ranks


def _rebuilt(layer: Pressed, values: Sequence[Tensor], ranks: Sizes) -> Pressed:
    """Return a pressed layer of other ranks with given factors."""
    like, bias = next(layer.parameters()).detach(), layer.held_bias()
    new = scheme(layer.scheme).skeleton(layer.spec, ranks, like=like)
    assert isinstance(new, Pressed)
    if isinstance(new, Composed):
        old = new.kernels()
        new.put([value.reshape(own.shape) for value, own in zip(values, old, strict=False)])
        if isinstance(new, PrunedLayer):
            new.keep((values[-1] - 1).clamp_min(0))
    else:
        first = values[0].mT if isinstance(new, TTConv) else values[0]
        with torch.no_grad():
            for parameter, value in zip(_factors(new), [first, *values[1:]], strict=True):
                parameter.copy_(value.reshape(parameter.shape))
    held = new.held_bias()
    if bias is not None and held is not None:
        held.data.copy_(bias)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(layer.get_parameter(name).requires_grad)
    new.relative_error = layer.relative_error
    return new.train(layer.training)
