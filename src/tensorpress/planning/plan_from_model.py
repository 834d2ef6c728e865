"""The plan of a pressed model, read from its layers."""

import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.planning.plan import Plan
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import layer_class
from tensorpress.schemes.parametrization import (
    FactorizedWeight,
    factorized_weight,
    stored_factors,
)
from tensorpress.schemes.pressed_layer import Pressed, layer_factors, pressed_forms
from tensorpress.schemes.registry import SCHEMES
from tensorpress.utils.module_tree import weight_name


def plan_from_model(model: nn.Module) -> Plan:
    """Return the plan of a pressed model.

    Raises
    ------
    ModelMismatchError
        If no plan describes the model: layers do not share the core that they should share, or a
        layer differs from what its scheme builds at its ranks.

    Examples
    --------
    >>> plan_from_model(nn.Linear(3, 2)).layers
    ()
    """
    layers: list[LayerPlan] = []
    shared: dict[str, set[int]] = {}
    for name, module in model.named_modules():
        for key, form in pressed_forms(module).items():
            layers.append(_read_layer(weight_name(name, key), module, key, form))
            if layers[-1].method.shared:
                shared.setdefault(form.scheme, set()).add(id(layer_factors(module, key)[0]))
    for scheme, cores in shared.items():
        if len(cores) > 1:
            raise ModelMismatchError(
                f"layers of {scheme} should share one core, but have {len(cores)} different ones"
            )
    plan = Plan(", ".join(dict.fromkeys(layer.scheme for layer in layers)), tuple(layers))
    total = sum(p.numel() for p in model.parameters())
    return Plan(plan.scheme, plan.layers, {}, total - plan.params)


def _read_layer(
    name: str, module: nn.Module, key: str, form: Pressed | FactorizedWeight
) -> LayerPlan:
    """Return the plan of a layer, or raise an error if its scheme would build a different one."""
    method = SCHEMES.get(form.scheme)
    if method is None or not (
        method.of_weight or form.spec is not None or layer_class(module) is not None
    ):
        raise ModelMismatchError(
            f"layer {name!r} is pressed by scheme {form.scheme!r}, which is not registered"
        )
    plan = LayerPlan(name, form.scheme, method.read_spec(module, key), form.ranks, form.options)
    if not _builds(plan, module, key):
        raise ModelMismatchError(
            f"layer {name!r} differs from what {plan.scheme} builds at ranks "
            f"{plan.format_ranks()}: it was changed, or pressed by another scheme of this name"
        )
    return plan


def _builds(plan: LayerPlan, module: nn.Module, key: str) -> bool:
    """Return whether the scheme of a plan builds such a layer."""
    try:
        plan.check()
    except InvalidArgumentError:
        return False
    like = torch.empty(0, device="meta")
    skeleton = plan.method.skeleton(plan.spec, plan.ranks, like=like)
    return _describe(skeleton) == _describe(module, key)


def _describe(module: nn.Module, key: str = "weight") -> tuple[object, ...]:
    """Return the modules and shapes of a pressed layer, for comparison."""
    weight = factorized_weight(module, key)
    # The repr of a ParameterList contains the types of its parameters, which do not matter.
    parts = [part for part in module.children() if not isinstance(part, nn.ParameterList)]
    modules = list(map(repr, parts)) if weight is None else [repr(weight)]
    factors = module if weight is None else stored_factors(module, key)
    return modules, [(key, tuple(p.shape)) for key, p in factors.named_parameters()]
