"""Batch norms after fitted layers: their scale and shift, and their running statistics."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.full_pass import run_to_end
from tensorpress.measure.cost import evaluation_mode

_LEAST = 1e-12  # least variance, so that a constant channel can be divided by


def norm_scale_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift per channel of a batch norm in eval mode.

    Examples
    --------
    >>> scale, shift = norm_scale_shift(nn.BatchNorm1d(2, eps=0.0))
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


def absorb_bias(norm: nn.Module, bias: Tensor) -> None:
    """Move a bias into the batch norm that follows a layer without one."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    norm.running_mean.sub_(bias)  # x + b - mean = x - (mean - b)


NormStatistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance of the inputs of each batch norm of a model, by its name."""


def norm_statistics(model: nn.Module, batches: Sequence[Batch]) -> NormStatistics:
    """Return the mean and variance of the inputs of a model's batch norms.

    One pass over the batches collects them, with the norms in training mode. The model is left
    unchanged.

    Parameters
    ----------
    model : nn.Module
        The model; its other modules run in eval mode.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> batches = collect_batches([torch.tensor([[1.0], [3.0]])], net)
    >>> mean, variance = norm_statistics(net, batches)["0"]
    >>> float(mean), float(variance)
    (2.0, 2.0)
    """
    norms = _norms(model)
    states = {name: (deepcopy(norm.state_dict()), norm.momentum) for name, norm in norms.items()}
    with torch.no_grad(), evaluation_mode(model):
        try:
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
                norm.training = True
            for batch in batches:
                run_to_end(model, batch)
            return {name: _statistics(norm) for name, norm in norms.items()}
        finally:
            for name, norm in norms.items():
                state, norm.momentum = states[name]
                norm.load_state_dict(state)


def move_norms(model: nn.Module, before: NormStatistics, after: NormStatistics) -> None:
    """Change the running statistics of batch norms as their statistics on calibration data changed.

    Means move by the difference and variances by the ratio. So statistics of the training data are
    adjusted, and never replaced by those of a few calibration batches.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    before, after : NormStatistics
        From `norm_statistics`, with the same batches.

    Examples
    --------
    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> one = torch.ones(1)
    >>> move_norms(net, {"0": (one, one)}, {"0": (3 * one, 4 * one)})
    >>> float(net[0].running_mean), float(net[0].running_var)
    (2.0, 4.0)
    """
    for name, norm in _norms(model).items():
        (mean, variance), (new_mean, new_variance) = before[name], after[name]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean += new_mean - mean
        norm.running_var *= new_variance / variance.clamp_min(_LEAST)


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
