"""Layers that are decomposed by their weights alone in spite of calibration data, and why."""

from dataclasses import replace
from math import prod

import torch
from torch import nn

from tensorpress.calibrate.patches import can_unfold
from tensorpress.reconstruct.embedding_fit import is_embedding
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import read_spec
from tensorpress.schemes.pressed_layer import Composed, pressed_forms
from tensorpress.utils.module_tree import locate_weight, weight_name

SVD_WEIGHT = "svd_weight"
"""The scheme that rebuilds a matrix from two factors."""

MOST_CHOSEN = 4_608
"""Channels are chosen by data up to this many columns, because this takes the full moment."""


def unfitted_layers(model: nn.Module) -> dict[str, str]:
    """Return the layers that were not fitted to the calibration data, each with the reason.

    Examples
    --------
    >>> import torch
    >>> import tensorpress as tp
    >>> net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    >>> overrides = {"1": {"scheme": "tt_weight", "ranks": 4}}
    >>> plan = tp.plan(net, scheme="channel_svd", ranks=4, overrides=overrides)
    >>> unfitted_layers(tp.press(net, plan, calibration=[torch.randn(300, 64)]))
    {'1': 'tt_weight rebuilds its weight from factors that are not fitted'}
    """
    return {
        weight_name(name, key): form.unfitted
        for name, module in model.named_modules()
        for key, form in pressed_forms(module).items()
        if form.unfitted is not None
    }


def reason_unfitted(model: nn.Module, layer: LayerPlan) -> str | None:
    """Return the reason why a layer cannot be fitted to data, or None if it can.

    Parameters
    ----------
    model : nn.Module
        The model with the dense layer.
    layer : LayerPlan
        The layer's plan.
    """
    method = layer.method
    if method.form != "layer":  # the name may be that of any parameter
        return f"{layer.scheme} rebuilds its weight from factors that are not fitted"
    module = model.get_submodule(layer.name)
    if not can_unfold(module) and not is_embedding(module):
        return f"its class {type(module).__name__} does not multiply inputs by a weight"
    shape = method.skeleton(layer.spec, layer.ranks, like=torch.empty(0, device="meta"))
    if not isinstance(shape, Composed):
        return f"{layer.scheme} of a {layer.spec.kind} is not a composition of kernels"
    columns = prod(layer.spec.kernel_shape[2:])
    if shape.selection() is not None and columns > MOST_CHOSEN:
        most = f"at most {MOST_CHOSEN:,} columns"
        return f"{layer.scheme} chooses channels by data for {most}, and it has {columns:,}"
    return None


def as_chain(model: nn.Module, layer: LayerPlan) -> LayerPlan:
    """Return the plan of an ``svd_weight`` Linear as a chain of two Linears; other plans unchanged.

    Both have the same responses, and a chain can be fitted to them.

    Parameters
    ----------
    model : nn.Module
        The model with the dense layer.
    layer : LayerPlan
        The layer's plan.
    """
    module, key = locate_weight(model, layer.name)
    if layer.scheme != SVD_WEIGHT or key != "weight" or not isinstance(module, nn.Linear):
        return layer
    return replace(layer, scheme="channel_svd", spec=read_spec(module))
