"""Laplace distributions of learned scale, as a differentiable price of coded values in bits."""

from collections.abc import Sequence
from math import log, prod

import torch
from torch import Tensor, nn

_LN2 = log(2)


def laplace_bits(steps: Tensor, log_scale: Tensor) -> Tensor:
    r"""Return the information of values that are rounded to integers, in bits.

    .. math:: -\log_2 [F(v + \tfrac12) - F(v - \tfrac12)]

    with F the distribution function of a Laplace distribution of mean 0 and scale b. At integers
    this is the length of their code; in between it is what noise of a uniform distribution on
    ±½ in place of rounding makes of it, and has a gradient.

    Parameters
    ----------
    steps : Tensor
        v, values in units of their quantization steps, any shape.
    log_scale : Tensor
        ln b, b in the same units; broadcasts with ``steps``.

    Returns
    -------
    Tensor
        Non-negative, the shape of ``steps``.

    References
    ----------
    Ballé, Laparra and Simoncelli, "End-to-end optimized image compression", ICLR 2017, section 3.

    Examples
    --------
    At scale 1 / ln 4, half of the mass is within ±½:

    >>> bits = laplace_bits(torch.tensor([0.0, 1.0, -3.0]), torch.tensor(1 / log(4)).log())
    >>> [round(b, 3) for b in bits.tolist()]
    [1.0, 2.415, 6.415]
    """
    rate = torch.exp(-log_scale)  # 1 / b
    size = steps.abs()
    half = rate / 2
    # Beyond ½ the mass is exp(-|v|/b) sinh(1/2b), without cancellation for any b.
    log_sinh = half + torch.log(-torch.expm1(-rate)) - log(2)
    outer = (size * rate - log_sinh) / _LN2
    # Within, 1 - exp(-1/2b) cosh(v/b), split so that no exponential is of a positive number.
    near = torch.clamp(size, max=0.5)
    beyond = torch.exp((near - 0.5) * rate) + torch.exp(-(near + 0.5) * rate)
    inner = -torch.log1p(-beyond / 2) / _LN2
    return torch.where(size < 0.5, inner, outer)


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
