"""Batch norms in as few numbers as they need."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.module_tree import count_references


def merge_statistics(model: nn.Module) -> list[str]:
    """Put the running statistics of batch norms into their weights and biases, in place.

    In eval mode the model computes the same, to rounding; mean 0 and variance 1 cost a file
    nothing. Layers stay as they are: folded into them as well, scales would differ from channel to
    channel, and one step for all of a layer would lose more.

    Parameters
    ----------
    model : nn.Module
        Norms without parameters or statistics, or that share them, are left alone.

    Returns
    -------
    list of str
        The names of the norms that were changed.

    Raises
    ------
    InvalidArgumentError
        Naming a norm with values that are not finite.

    Examples
    --------
    >>> norm = nn.BatchNorm1d(2)
    >>> _ = norm.running_mean.fill_(3.0)
    >>> merge_statistics(norm), norm.running_mean.tolist(), round(norm.bias[0].item(), 3)
    ([''], [0.0, 0.0], -3.0)
    """
    held_by = count_references(model)
    changed = []
    for name, norm in model.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        names = ("weight", "bias", "running_mean", "running_var")
        held = [getattr(norm, key, None) for key in names]
        if any(tensor is None or held_by[id(tensor)] != 1 for tensor in held):
            continue
        _merge(name, norm)
        changed.append(name)
    return changed


@torch.no_grad()
def _merge(name: str, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - scale * norm.running_mean.double()
    if not bool((scale + shift).isfinite().all()):
        raise InvalidArgumentError(f"norm {name!r} has NaN or infinite values")
    norm.weight.copy_(scale * (1 + norm.eps) ** 0.5)
    norm.bias.copy_(shift)
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.zero_()
