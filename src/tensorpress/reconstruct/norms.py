"""Batch norms beside layers that were fitted: what they do to responses, and their statistics."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tensorpress.calibrate.batches import Batch, outputs
from tensorpress.measure.cost import evaluating


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return what a batch norm in eval mode multiplies channels by, and what it adds.

    Examples
    --------
    >>> scale, shift = affine(nn.BatchNorm1d(2, eps=0.0))
    >>> scale.tolist(), shift.tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    assert isinstance(norm, _BatchNorm)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance + norm.eps).rsqrt()
    weight, bias = norm._parameters.get("weight"), norm._parameters.get("bias")
    scale = scale if weight is None else scale * weight.detach()
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias.detach()


def take_bias(norm: nn.Module, bias: Tensor) -> None:
    """Give a batch norm the bias of the layer before it, which has none of its own."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    norm.running_mean.sub_(bias)


def reestimate_norms(model: nn.Module, batches: Sequence[Batch]) -> list[str]:
    """Set the statistics of a model's batch norms to those of what they are given now, in place.

    In one pass over the batches; each norm sees what the norms before it make with the statistics
    of the batch, as in training. Parameters stay.

    Parameters
    ----------
    model : nn.Module
        With any batch norms; other modules are in eval mode.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.hold`.

    Returns
    -------
    list of str
        The names of the norms.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import hold
    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> reestimate_norms(net, hold([torch.tensor([[1.0], [3.0]])], net)), float(net[0].running_mean)
    (['0'], 2.0)
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }
    momenta = {name: norm.momentum for name, norm in norms.items()}
    with torch.no_grad(), evaluating(model):
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.training = True
        for batch in batches:
            outputs(model, batch)
    for name, norm in norms.items():
        norm.momentum = momenta[name]
    return list(norms)
