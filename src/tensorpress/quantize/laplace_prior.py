"""Laplace priors with learned scales: a differentiable estimate of the bits of coded values."""

from collections.abc import Sequence
from math import log, prod

import torch
from torch import Tensor, nn

_LN2 = log(2)
_MIN_SCALE = 0.05  # in steps; below it almost all values are zero
_VALUES_PER_SCALE = 32  # least values per row and column factor


def laplace_bits(steps: Tensor, log_scale: Tensor) -> Tensor:
    r"""Return the information in bits of values that are rounded to integers.

    .. math:: -\log_2 [F(v + \tfrac12) - F(v - \tfrac12)]

    Here F is the cumulative distribution of a Laplace distribution of mean 0 and scale b. At
    integers this is the length of an ideal code. Between integers it is the information of values
    with uniform noise on ±½ instead of rounding, and has a gradient.

    Parameters
    ----------
    steps : Tensor
        Values v in units of their quantization steps, any shape.
    log_scale : Tensor
        ln b, with b in the same units; it broadcasts with ``steps``.

    Returns
    -------
    Tensor
        Non-negative bits, the shape of ``steps``.

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
    magnitude = steps.abs()
    half = rate / 2
    # For |v| >= 1/2: P = exp(-|v|/b) sinh(1/2b), with
    # ln sinh(1/2b) = 1/2b + ln(1 - exp(-1/b)) - ln 2, which does not cancel for any b.
    log_sinh = half + torch.log(-torch.expm1(-rate)) - _LN2
    outer = (magnitude * rate - log_sinh) / _LN2
    # For |v| < 1/2: P = 1 - exp(-1/2b) cosh(v/b), written as
    # 1 - (exp((|v| - 1/2)/b) + exp(-(|v| + 1/2)/b)) / 2, so that no exponent is positive.
    inside = torch.clamp(magnitude, max=0.5)
    tails = torch.exp((inside - 0.5) * rate) + torch.exp(-(inside + 0.5) * rate)
    inner = -torch.log1p(-tails / 2) / _LN2
    return torch.where(magnitude < 0.5, inner, outer)


class LaplacePriors(nn.Module):
    """Learned scales: one per tensor, times a factor per row and column of large tensors.

    The factors are not stored, because the coder of a file learns the magnitudes of rows and
    columns while decoding. Only tensors large enough for that have factors.

    Parameters
    ----------
    tensors : sequence of Tensor
        Values in steps for initializing the scales. Axis 0 is rows, axis 1 columns.

    Attributes
    ----------
    scales : nn.Parameter
        Logarithms of the scales, shape (tensors,).
    factors : nn.Parameter
        Logarithms of the factors of rows and columns, shape (factors,).

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
        owners, indices, scales = [], [], []
        factors = [torch.empty(0)]
        for number, tensor in enumerate(tensors):
            # b_t = E|v|, the scale of maximum likelihood
            magnitudes = tensor.detach().abs().cpu().float()
            scales.append(magnitudes.mean().clamp(min=_MIN_SCALE))
            owners.append(torch.full((tensor.numel(),), number))
            if not _has_factors(tensor):
                indices.append(torch.zeros(2, tensor.numel(), dtype=torch.long))
                continue
            # r_i = E_j|v_ij| / b_t for rows, c_j = E_i|v_ij| / b_t for columns
            indices.append(_factor_indices(tensor.shape, first=1 + sum(map(len, factors))))
            matrix = magnitudes.flatten(2).mean(2) if tensor.ndim > 2 else magnitudes
            means = torch.cat([matrix.mean(1), matrix.mean(0)])
            factors.append((means / scales[-1]).clamp(min=_MIN_SCALE).log())
        self.scales = nn.Parameter(torch.stack(scales).log())
        self.factors = nn.Parameter(torch.cat(factors))
        self.register_buffer("_owners", torch.cat(owners), persistent=False)
        self.register_buffer("_indices", torch.cat(indices, dim=1), persistent=False)

    def bits(self, values: Tensor) -> Tensor:
        """Return the information of all values in bits.

        Parameters
        ----------
        values : Tensor
            The values of all tensors in steps, one tensor after the other, shape (values,).
        """
        # ln b_ij = ln b_t + ln r_i + ln c_j
        log_scales = self.scales[self.get_buffer("_owners")]
        if self.factors.numel():
            factors = torch.cat([self.factors.new_zeros(1), self.factors])
            row, column = self.get_buffer("_indices")
            log_scales = log_scales + factors[row] + factors[column]
        return laplace_bits(values, log_scales).sum()


def _has_factors(tensor: Tensor) -> bool:
    """Return whether a tensor has enough values for a scale of each row and column."""
    if tensor.ndim < 2:
        return False
    return tensor.numel() >= _VALUES_PER_SCALE * (tensor.shape[0] + tensor.shape[1])


def _factor_indices(shape: torch.Size, first: int) -> Tensor:
    """Return the indices of the factors of each value's row and column, shape (2, values).

    `first` is the index of the first row's factor. Index 0 is the factor 1 of other tensors.
    """
    rows, columns, *inner = shape
    sides = torch.meshgrid(torch.arange(rows), rows + torch.arange(columns), indexing="ij")
    return torch.stack(sides).flatten(1).repeat_interleave(prod(inner), dim=1) + first
