"""GPTQ: rounds a weight column by column; later columns compensate for earlier errors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.quantize.rate_distortion import SymbolCosts, choose_symbols

DAMPING = 0.01
"""Share of the moments' mean diagonal that is added to their diagonal."""

_COLUMNS = 128  # columns of a block; its effect on later columns is one matrix product
_SWEEPS = 3  # after these, hardly any symbol changes


@dataclass(frozen=True)
class Feedback:
    r"""The order in which a weight's columns are rounded, and the feedback of their errors.

    With :math:`H = E\,x x^T`, the mean squared error of the responses :math:`Wx` is
    :math:`tr\,(W-Q)\,H\,(W-Q)^T`. If each column is corrected by the best linear estimate from
    earlier errors before it is rounded, this equals :math:`\sum_j p_j e_j^2` with the rounding
    errors e and the pivots p of H in the order of rounding.

    Attributes
    ----------
    order : Tensor
        Indices of the columns, largest moments first, shape (..., columns).
    upper : Tensor
        Upper triangular U with UᵀU the inverse of the damped H in this order, float64, shape (...,
        columns, columns). Leading axes are weights that are rounded together.

    References
    ----------
    Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained
    transformers", ICLR 2023, algorithm 1; Chee et al., "QuIP: 2-bit quantization of large language
    models with guarantees", NeurIPS 2023, for the view as an LDL decomposition.
    """

    order: Tensor
    upper: Tensor

    @staticmethod
    def from_moments(moments: Tensor, damping: float = DAMPING) -> "Feedback":
        """Return the feedback for second moments of a layer's inputs.

        Parameters
        ----------
        moments : Tensor
            Second moments E x xᵀ, shape (..., columns, columns), finite.
        damping : float
            Share of the mean diagonal that is added to the diagonal.

        Examples
        --------
        >>> h = torch.diag(torch.tensor([1.0, 4.0]).double())
        >>> feedback = Feedback.from_moments(h, damping=0.0)
        >>> feedback.order.tolist(), feedback.pivots.tolist()
        ([1, 0], [4.0, 1.0])
        """
        h = damp(moments, damping)
        order = _diagonal(moments).argsort(descending=True, stable=True)
        h = h.take_along_dim(order[..., None], -2).take_along_dim(order[..., None, :], -1)
        # H = L Lᵀ, and from it U with UᵀU = H^-1.
        lower = torch.linalg.cholesky(h)
        return Feedback(order, torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True))

    @property
    def pivots(self) -> Tensor:
        """The weight p_j = 1 / U_jj² of each column's squared error, in the order of rounding."""
        return _diagonal(self.upper).square().reciprocal()

    @property
    def mean_pivot(self) -> Tensor:
        """The geometric mean of the pivots, shape (..., 1)."""
        return self.pivots.log().mean(-1, keepdim=True).exp()

    def round(self, values: Tensor, price: float = 0.0) -> Tensor:
        """Return symbols for a weight in steps.

        Parameters
        ----------
        values : Tensor
            The weight in steps, shape (..., rows, columns).
        price : float
            The price of a bit, in squared steps of a column with the mean pivot; see
            `tensorpress.quantize.rate_distortion.choose_symbols`.

        Returns
        -------
        Tensor
            int32 symbols, shape (..., rows, columns).

        Examples
        --------
        >>> h = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        >>> Feedback.from_moments(h).round(torch.tensor([[0.4, 0.4]])).tolist()
        [[0, 1]]
        """
        columns = values.shape[-1]
        original = values.double().reshape(-1, *values.shape[-2:])  # (weights, rows, columns)
        upper, order = self.upper.reshape(-1, columns, columns), self.order.reshape(-1, 1, columns)
        costs = SymbolCosts.from_symbols(original.round()) if price else None
        importance = (self.pivots / self.mean_pivot).reshape(-1, 1, columns)
        nonzero = original.any(-1).any(0)  # rows of zeros are skipped
        remaining = original[:, nonzero].take_along_dim(order, -1)  # corrected for errors so far
        result = torch.empty_like(remaining)
        for start in range(0, columns, _COLUMNS):
            stop = min(start + _COLUMNS, columns)
            block, errors = remaining[..., start:stop], []
            for j in range(start, stop):
                row = upper[:, j, None]
                column = remaining[..., j]
                # q_j: the symbol nearest to w_j, or the best with its bits priced.
                if costs is None:
                    symbols = column.round()
                else:
                    symbols = choose_symbols(column, importance[..., j], price, costs)
                result[..., j] = symbols
                # e_j = (w_j - q_j) / U_jj; w_k -= e_j U_jk for later columns k of the block.
                error = (column - symbols) / row[..., j]
                block[..., j - start + 1 :].baddbmm_(
                    error[..., None], row[..., j + 1 : stop], alpha=-1
                )
                errors.append(error)
            # For all columns after the block: W -= E U.
            remaining[..., stop:] -= torch.stack(errors, -1) @ upper[:, start:stop, stop:]
        symbols = torch.zeros(original.shape, dtype=torch.int32)
        symbols[:, nonzero] = result.take_along_dim(order.argsort(-1), -1).to(torch.int32)
        return symbols.reshape(values.shape)


def polish(symbols: Tensor, values: Tensor, moments: Tensor, price: float = 0.0) -> Tensor:
    """Improve symbols by coordinate descent.

    In three sweeps over the columns, each symbol becomes the best one with the others of its row
    fixed, so that every change lowers the error of the responses.

    Parameters
    ----------
    symbols : Tensor
        The initial symbols, shape (..., rows, columns).
    values : Tensor
        The weight in steps, shape (..., rows, columns).
    moments : Tensor
        Second moments E x xᵀ, shape (..., columns, columns); they are damped as in `Feedback`.
    price : float
        The price of a bit, as for `Feedback.round`.

    Returns
    -------
    Tensor
        int32 symbols, shape (..., rows, columns).

    References
    ----------
    Behdin et al., "QuantEase: optimization-based quantization for language models", 2023.

    Examples
    --------
    >>> h = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    >>> polish(torch.tensor([[0, 0]]), torch.tensor([[0.4, 0.4]]), h).tolist()
    [[1, 0]]
    """
    columns = values.shape[-1]
    h = damp(moments).reshape(-1, columns, columns)
    importance = _diagonal(h)[:, None]  # (weights, 1, columns)
    if price:
        importance = importance / Feedback.from_moments(moments).mean_pivot.reshape(-1, 1, 1)
    result = symbols.double().reshape(-1, *symbols.shape[-2:])
    costs = SymbolCosts.from_symbols(result) if price else None
    # Half the negative gradient of tr (W - Q) H (W - Q)ᵀ by Q: G = (W - Q) H.
    gradient = (values.double().reshape(result.shape) - result) @ h
    for _ in range(_SWEEPS):
        for start in range(0, columns, _COLUMNS):
            block = slice(start, start + _COLUMNS)
            local, h_block = gradient[..., block].clone(), h[:, block, block]
            previous = result[..., block].clone()
            for j in range(h_block.shape[-1]):
                # The minimum over q_j alone is at q_j + g_j / H_jj; round it.
                best = previous[..., j] + local[..., j] / h_block[:, None, j, j]
                if costs is None:
                    best = best.round()
                else:
                    best = choose_symbols(best, importance[..., start + j], price, costs)
                result[..., start + j] = best
                # G -= dq_j H_j, within the block at once, for all columns after it.
                step = best - previous[..., j]
                local.baddbmm_(step[..., None], h_block[:, j, None], alpha=-1)
            gradient -= (result[..., block] - previous) @ h[:, block]
    return result.reshape(symbols.shape).to(torch.int32)


def damp(moments: Tensor, damping: float = DAMPING) -> Tensor:
    """Return moments in float64 with a share of their mean diagonal added to it."""
    h = moments.double()
    mean = _diagonal(h).mean(-1)[..., None, None]
    eye = torch.eye(h.shape[-1], dtype=torch.float64)
    return h + torch.where(mean > 0, damping * mean, 1 + damping) * eye  # 1 if all are zero


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)
