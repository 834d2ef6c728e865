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
from tensorpress.schemes.pressed_layer import Pressed, layer_factors, pressed_form
from tensorpress.schemes.registry import SCHEMES


def plan_from_model(model: nn.Module) -> Plan:
    """Return the plan of a pressed model.

    Raises
    ------
    ModelMismatchError
        If no plan describes the model: its layers should share one core and do not, or a layer is
        not the one that its scheme builds at its ranks.

    Examples
    --------
    >>> plan_from_model(nn.Linear(3, 2)).layers
    ()
    """
    layers: list[LayerPlan] = []
    shared: dict[str, set[int]] = {}
    for name, module in model.named_modules():
        form = pressed_form(module)
        if form is None:
            continue
        layers.append(_read_layer(name, module, form))
        if layers[-1].method.shared:
            shared.setdefault(form.scheme, set()).add(id(layer_factors(module)[0]))
    for scheme, cores in shared.items():
        if len(cores) > 1:
            raise ModelMismatchError(
                f"layers of {scheme} that should share one core hold {len(cores)} of them"
            )
    plan = Plan(", ".join(dict.fromkeys(layer.scheme for layer in layers)), tuple(layers))
    total = sum(p.numel() for p in model.parameters())
    return Plan(plan.scheme, plan.layers, {}, total - plan.params)


def _read_layer(name: str, module: nn.Module, form: Pressed | FactorizedWeight) -> LayerPlan:
    """Return the plan of a layer, or raise an error if its scheme would build a different one."""
    method = SCHEMES.get(form.scheme)
    if method is None or not (
        method.of_weight or isinstance(form, Pressed) or layer_class(module) is not None
    ):
        raise ModelMismatchError(
            f"layer {name!r} is pressed by a scheme {form.scheme!r} of your own"
        )
    plan = LayerPlan(name, form.scheme, method.read_spec(module), form.ranks, form.options)
    if not _builds(plan, module):
        raise ModelMismatchError(
            f"layer {name!r} is not what {plan.scheme} makes of its ranks {plan.format_ranks()}: "
            "it was changed, or its scheme is not the one of this name"
        )
    return plan


def _builds(plan: LayerPlan, module: nn.Module) -> bool:
    """Return whether the scheme of a plan builds such a layer."""
    try:
        plan.check()
    except InvalidArgumentError:
        return False
    like = torch.empty(0, device="meta")
    skeleton = plan.method.skeleton(plan.spec, plan.ranks, like=like)
    return _describe(skeleton) == _describe(module)


def _describe(module: nn.Module) -> tuple[object, ...]:
    """Return what distinguishes pressed layers of the same ranks: modules and shapes."""
    weight = factorized_weight(module)
    # The repr of a ParameterList has the types of its parameters, which do not matter here.
    parts = [part for part in module.children() if not isinstance(part, nn.ParameterList)]
    modules = list(map(repr, parts)) if weight is None else [repr(weight)]
    factors = module if weight is None else stored_factors(module)
    return modules, [(key, tuple(p.shape)) for key, p in factors.named_parameters()]
