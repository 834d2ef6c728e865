"""Reading the plan back from a pressed model."""

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
    """Return the plan of a layer, or raise where its scheme would build another one from it."""
    known = SCHEMES.get(form.scheme)
    if known is None or not (
        known.of_weight or isinstance(form, Pressed) or layer_class(module) is not None
    ):
        raise ModelMismatchError(
            f"layer {name!r} is pressed by a scheme {form.scheme!r} of your own"
        )
    plan = LayerPlan(name, form.scheme, known.read_spec(module), form.ranks, form.options)
    if not _builds(plan, module):
        raise ModelMismatchError(
            f"layer {name!r} is not what {plan.scheme} makes of its ranks {plan.format_ranks()}: "
            "it was changed, or its scheme is not the one of this name"
        )
    return plan


def _builds(plan: LayerPlan, module: nn.Module) -> bool:
    """Whether the scheme of a plan builds such a layer."""
    try:
        plan.check()
    except InvalidArgumentError:
        return False
    like = torch.empty(0, device="meta")
    return _form(plan.method.skeleton(plan.spec, plan.ranks, like=like)) == _form(module)


def _form(module: nn.Module) -> tuple[object, ...]:
    """Return what tells pressed layers of the same ranks apart."""
    weight = factorized_weight(module)
    # Of a list of parameters torch prints their types, which do not matter here.
    parts = [part for part in module.children() if not isinstance(part, nn.ParameterList)]
    printed = list(map(repr, parts)) if weight is None else [repr(weight)]
    held = module if weight is None else stored_factors(module)
    return printed, [(key, tuple(p.shape)) for key, p in held.named_parameters()]
