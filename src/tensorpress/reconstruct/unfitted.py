"""Layers that start from their weights alone although there are calibration data, and why."""

from dataclasses import replace
from math import prod

import torch
from torch import nn

from tensorpress.calibrate.patches import can_unfold
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import read_spec
from tensorpress.schemes.pressed_layer import Composed, pressed_form
from tensorpress.utils.module_tree import locate_weight

SVD_WEIGHT = "svd_weight"
"""The scheme that rebuilds a matrix from two factors."""

MOST_CHOSEN = 4_608
"""Most columns of a layer whose channels are chosen by data, which takes all of its moments."""


def unfitted_layers(model: nn.Module) -> dict[str, str]:
    """Return the layers of a pressed model that were not fitted to its calibration data, and why.

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
    reasons = {}
    for name, module in model.named_modules():
        form = pressed_form(module)
        if form is not None and form.unfitted is not None:
            reasons[name] = form.unfitted
    return reasons


def reason_unfitted(model: nn.Module, layer: LayerPlan) -> str | None:
    """Return why a layer cannot be fitted, None where it is composed of kernels with known inputs.

    Parameters
    ----------
    model : nn.Module
        The model, in which the layer is dense.
    layer : LayerPlan
        How it is to be pressed.
    """
    method = layer.method
    if method.form != "layer":  # it may be any parameter of a module
        return f"{layer.scheme} rebuilds its weight from factors that are not fitted"
    module = model.get_submodule(layer.name)
    if not can_unfold(module):
        return f"{type(module).__name__} multiplies no inputs with its weight"
    shape = method.skeleton(layer.spec, layer.ranks, like=torch.empty(0, device="meta"))
    if not isinstance(shape, Composed):
        return f"{layer.scheme} of a {layer.spec.kind} is no composition of kernels"
    columns = prod(layer.spec.kernel_shape[2:])
    if shape.selection() is not None and columns > MOST_CHOSEN:
        most = f"{MOST_CHOSEN:,} columns at most"
        return f"{layer.scheme} chooses channels by data of {most}, and it has {columns:,}"
    return None


def as_chain(model: nn.Module, layer: LayerPlan) -> LayerPlan:
    """Return the plan of two Linear layers for a matrix rebuilt from two factors, or else the plan.

    The responses of the matrix are theirs, where its inputs are known.

    Parameters
    ----------
    model : nn.Module
        The model, in which the layer is dense.
    layer : LayerPlan
        How the layer is to be pressed.
    """
    module, key = locate_weight(model, layer.name)
    if layer.scheme != SVD_WEIGHT or key != "weight" or not isinstance(module, nn.Linear):
        return layer
    return replace(layer, scheme="channel_svd", spec=read_spec(module))
