"""Merges the statistics of batch norms into their weights and biases."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.module_tree import count_references


def merge_statistics(model: nn.Module) -> list[str]:
    """Merge the running statistics of batch norms into their weights and biases, in place.

    In eval mode outputs are equal up to rounding errors, and a mean of 0 and a variance of 1 take
    hardly any space in a file. Norms are not folded into the layers before them, because the
    channels of these would then differ in scale, and one step for all would lose more.

    Parameters
    ----------
    model : nn.Module
        The model. Norms without parameters or statistics, or with shared ones, are not changed.

    Returns
    -------
    list of str
        The names of the changed norms.

    Raises
    ------
    InvalidArgumentError
        If a norm has values that are not finite; the message names it.

    Examples
    --------
    >>> norm = nn.BatchNorm1d(2)
    >>> _ = norm.running_mean.fill_(3.0)
    >>> merge_statistics(norm), norm.running_mean.tolist(), round(norm.bias[0].item(), 3)
    ([''], [0.0, 0.0], -3.0)
    """
    references = count_references(model)
    changed = []
    for name, norm in model.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        names = ("weight", "bias", "running_mean", "running_var")
        tensors = [getattr(norm, key, None) for key in names]
        if any(tensor is None or references[id(tensor)] != 1 for tensor in tensors):
            continue
        _merge(name, norm)
        changed.append(name)
    return changed


@torch.no_grad()
def _merge(name: str, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # y = scale x + shift, with scale = γ / √(σ² + ε) and shift = β - scale μ
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - scale * norm.running_mean.double()
    if not bool((scale + shift).isfinite().all()):
        raise InvalidArgumentError(f"norm {name!r} has NaN or infinite values")
    # For μ = 0 and σ² = 1: γ = scale √(1 + ε), β = shift
    norm.weight.copy_(scale * (1 + norm.eps) ** 0.5)
    norm.bias.copy_(shift)
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.zero_()
