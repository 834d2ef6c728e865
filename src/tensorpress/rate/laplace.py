"""What a value costs under a Laplace distribution of learned scale, differentiably."""

from math import log

import torch
from torch import Tensor

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
