"""Reading the plan back from a pressed model."""

from collections.abc import Sequence
from math import prod

import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.planning.plan import Plan
from tensorpress.schemes.layer_plan import Core, LayerPlan, PlannedLayer, SchemePlan
from tensorpress.schemes.layer_spec import layer_class, spec_of
from tensorpress.schemes.parametrization import factorized_weight, stored_factors
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.schemes.registry import LAYER_SCHEMES
from tensorpress.schemes.tt_weight import TTWeight
from tensorpress.schemes.tucker_weight import TuckerWeight


def plan_from_model(model: nn.Module) -> Plan:
    """Read the plan back from a pressed model.

    Raises
    ------
    ModelMismatchError
        For what no plan can say: layers that should share one core and do not, and a layer that is
        not what its scheme makes of its ranks, such as one with modes of its own.

    Examples
    --------
    >>> plan_from_model(nn.Linear(3, 2)).layers
    ()
    """
    layers: list[PlannedLayer] = []
    cores: set[int] = set()
    for name, module in model.named_modules():
        weight = factorized_weight(module)
        if isinstance(weight, TuckerWeight):
            layers.append(_tucker(name, weight))
            if weight.shared:
                cores.add(id(stored_factors(module).original0))
        elif isinstance(weight, TTWeight) or isinstance(module, Pressed):
            layers.append(_of_scheme(name, module))
    if len(cores) > 1:
        raise ModelMismatchError(f"layers that should share one core hold {len(cores)} of them")
    plan = Plan(_names(layers), tuple(layers))
    stored = sum(layer.factor_params for layer in layers) + prod(plan.shared_core or (0,))
    total = sum(p.numel() for p in model.parameters())
    return Plan(plan.scheme, plan.layers, {}, total - stored)


def _tucker(name: str, weight: TuckerWeight) -> LayerPlan:
    return LayerPlan(name, weight.shape, weight.modes, weight.ranks, _core(weight))


def _core(weight: TuckerWeight) -> Core:
    if weight.shared:
        return "shared"
    return "diagonal" if weight.diagonal else "reduced" if weight.reduced else "own"


def _of_scheme(name: str, module: nn.Module) -> SchemePlan:
    """Return the plan of a layer, or raise where its scheme would build another one from it."""
    plan = _claimed(name, module)
    if plan is None or plan.scheme not in LAYER_SCHEMES:
        scheme = f" {plan.scheme!r}" if plan else ""
        raise ModelMismatchError(f"layer {name!r} is pressed by a scheme{scheme} of your own")
    if not _builds(plan, module):
        raise ModelMismatchError(
            f"layer {name!r} is not what {plan.scheme} makes of its ranks {plan.ranks}: it has "
            "modes of its own, or was changed"
        )
    return plan


def _builds(plan: SchemePlan, module: nn.Module) -> bool:
    """Whether the scheme of a plan builds such a layer."""
    try:
        plan.check()
    except InvalidArgumentError:
        return False
    like = torch.empty(0, device="meta")
    expected = LAYER_SCHEMES[plan.scheme].skeleton(plan.spec, plan.ranks, like=like)
    return _form(expected) == _form(module)


def _claimed(name: str, module: nn.Module) -> SchemePlan | None:
    if isinstance(module, Pressed):
        return SchemePlan(name, module.scheme, module.spec, module.ranks)
    weight = factorized_weight(module)
    if not isinstance(weight, TTWeight) or layer_class(module) is None:
        return None
    scheme = next(s.name for s in LAYER_SCHEMES.values() if s.form == "weight")
    return SchemePlan(name, scheme, spec_of(module), weight.ranks)


def _form(module: nn.Module) -> tuple[object, ...]:
    """Return what tells pressed layers of the same ranks apart."""
    weight = factorized_weight(module)
    # Of a list of parameters torch prints their types, which do not matter here.
    parts = [part for part in module.children() if not isinstance(part, nn.ParameterList)]
    printed = list(map(repr, parts)) if weight is None else [repr(weight)]
    return printed, [(key, tuple(p.shape)) for key, p in module.named_parameters()]


def _names(layers: Sequence[PlannedLayer]) -> str:
    return ", ".join(dict.fromkeys(layer.scheme for layer in layers))
