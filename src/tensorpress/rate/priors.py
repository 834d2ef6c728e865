"""What the coded values of a model are expected to be: learned scales of Laplace distributions."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from tensorpress.rate.laplace import laplace_bits

_SMALLEST_SCALE = 0.05  # in steps; below it almost all values are zero and cost nothing
_VALUES_A_SCALE = 32  # least, for rows and columns to have scales of their own


class LaplacePriors(nn.Module):
    """A scale for every tensor and, in large ones, a factor for every row and every column.

    A file's coder learns how large the values of a row and of a column are while it reads them, so
    that these factors are not stored; there are only as many as it can learn.

    Parameters
    ----------
    tensors : sequence of Tensor
        Values in steps, at which the scales start. Dimension 0 are rows, dimension 1 columns.

    Examples
    --------
    >>> priors = LaplacePriors([torch.ones(3), torch.randn(64, 64)])
    >>> priors.scales.shape, priors.factors.shape
    (torch.Size([2]), torch.Size([128]))
    >>> bool(priors.bits(torch.zeros(3 + 64 * 64)) > 0)
    True
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        owners, places, scales = [], [], []
        factors = [torch.empty(0)]
        for number, tensor in enumerate(tensors):
            sizes = tensor.detach().abs().cpu().float()
            scales.append(sizes.mean().clamp(min=_SMALLEST_SCALE))
            owners.append(torch.full((tensor.numel(),), number))
            if not _is_large(tensor):
                places.append(torch.zeros(2, tensor.numel(), dtype=torch.long))
                continue
            places.append(_places(tensor.shape, first=1 + sum(map(len, factors))))
            sides = sizes.flatten(2).mean(2) if tensor.ndim > 2 else sizes
            means = torch.cat([sides.mean(1), sides.mean(0)])
            factors.append((means / scales[-1]).clamp(min=_SMALLEST_SCALE).log())
        self.scales = nn.Parameter(torch.stack(scales).log())
        self.factors = nn.Parameter(torch.cat(factors))
        self.register_buffer("_owners", torch.cat(owners), persistent=False)
        self.register_buffer("_places", torch.cat(places, dim=1), persistent=False)

    def bits(self, values: Tensor) -> Tensor:
        """Return the information of all values in steps, flat and one tensor after the other."""
        log_scales = self.scales[self.get_buffer("_owners")]
        if self.factors.numel():
            factors = torch.cat([self.factors.new_zeros(1), self.factors])
            row, column = self.get_buffer("_places")
            log_scales = log_scales + factors[row] + factors[column]
        return laplace_bits(values, log_scales).sum()


def _is_large(tensor: Tensor) -> bool:
    if tensor.ndim < 2:
        return False
    return tensor.numel() >= _VALUES_A_SCALE * (tensor.shape[0] + tensor.shape[1])


def _places(shape: torch.Size, first: int) -> Tensor:
    """Return where the factors of each value's row and column are, shape (2, values).

    Place 0 is that of a factor 1, for tensors without.
    """
    rows, columns, *inner = shape
    sides = torch.meshgrid(torch.arange(rows), rows + torch.arange(columns), indexing="ij")
    return torch.stack(sides).flatten(1).repeat_interleave(prod(inner), dim=1) + first
