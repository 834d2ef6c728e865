"""Rounding a weight column by column, what follows making up for the errors of what came before."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.quantize.rate_distortion import SymbolCosts, choose

DAMPING = 0.01
"""What is added to the diagonal of the moments, relative to its mean."""

_COLUMNS = 128  # whose effect on all later columns is one matrix product
_SWEEPS = 3  # after which hardly a symbol changes


@dataclass(frozen=True)
class Feedback:
    r"""The order of a weight's columns, and how the error of each is passed on.

    With :math:`H = E\,x x^T` the mean squared error of the responses :math:`Wx` is
    :math:`tr\,(W-Q)\,H\,(W-Q)^T`. Rounded in an order in which each column is first corrected by
    the best linear estimate of the errors made already, this is :math:`\sum_j p_j e_j^2` with the
    pivots p of H in that order and the rounding errors e (GPTQ, Frantar et al., ICLR 2023; the
    LDL view is that of QuIP, Chee et al., NeurIPS 2023).

    Attributes
    ----------
    order : Tensor
        The columns, those with the largest moments first.
    upper : Tensor
        Upper triangular U with UᵀU the inverse of the damped H in that order, float64.
    """

    order: Tensor
    upper: Tensor

    @staticmethod
    def of(moments: Tensor, damping: float = DAMPING) -> "Feedback":
        """Return the feedback by second moments.

        Parameters
        ----------
        moments : Tensor
            E x xᵀ, shape (columns, columns), finite.
        damping : float
            Added to the diagonal, relative to its mean.

        Examples
        --------
        >>> feedback = Feedback.of(torch.diag(torch.tensor([1.0, 4.0]).double()), damping=0.0)
        >>> feedback.order.tolist(), feedback.pivots.tolist()
        ([1, 0], [4.0, 1.0])
        """
        h = damp(moments, damping)
        order = moments.diagonal().argsort(descending=True, stable=True)
        h = h[order][:, order]
        lower = torch.linalg.cholesky(h)
        return Feedback(order, torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True))

    @property
    def pivots(self) -> Tensor:
        """What a squared error of each column counts, in that order."""
        return self.upper.diagonal().square().reciprocal()

    @property
    def mean_pivot(self) -> float:
        """Their geometric mean."""
        return float(self.pivots.log().mean().exp())

    def round(self, values: Tensor, price: float = 0.0) -> Tensor:
        """Return symbols for a weight in steps.

        Parameters
        ----------
        values : Tensor
            The weight in steps, shape (rows, columns).
        price : float
            Of a bit, in squared steps of a column with the mean pivot; see `choose`.

        Returns
        -------
        Tensor
            int32, the shape of `values`.

        Examples
        --------
        >>> h = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        >>> Feedback.of(h).round(torch.tensor([[0.4, 0.4]])).tolist()
        [[0, 1]]
        """
        values = values.double()
        costs = SymbolCosts.of(values.round()) if price else None
        weights = self.pivots / self.mean_pivot
        alive = values.any(dim=1)  # rows of zeros stay so, and cost no time
        ahead = values[alive][:, self.order]
        found = torch.empty_like(ahead)
        count = ahead.shape[1]
        for start in range(0, count, _COLUMNS):
            stop = min(start + _COLUMNS, count)
            part, errors = ahead[:, start:stop], []
            for j in range(stop - start):
                row = self.upper[start + j]
                column = part[:, j]
                if costs is None:
                    symbols = column.round()
                else:
                    symbols = choose(column, float(weights[start + j]), price, costs)
                error = (column - symbols) / row[start + j]
                found[:, start + j] = symbols
                part[:, j + 1 :].addr_(error, row[start + j + 1 : stop], alpha=-1)
                errors.append(error)
            ahead[:, stop:] -= torch.stack(errors, 1) @ self.upper[start:stop, stop:]
        symbols = torch.zeros(values.shape, dtype=torch.int32)
        symbols[alive] = found[:, self.order.argsort()].to(torch.int32)
        return symbols


def polish(symbols: Tensor, values: Tensor, moments: Tensor, price: float = 0.0) -> Tensor:
    """Return symbols of less error than given ones, by changing one after the other.

    Each becomes the level that is best while all others of its row stay, column after column, three
    times over: the error of the responses falls with every change.

    Parameters
    ----------
    symbols : Tensor
        Shape (rows, columns).
    values : Tensor
        The weight in steps.
    moments : Tensor
        E x xᵀ, shape (columns, columns); damped as for feedback.
    price : float
        As for `Feedback.round`.

    Returns
    -------
    Tensor
        int32.

    References
    ----------
    Behdin et al., "QuantEase: optimization-based quantization for language models", 2023.

    Examples
    --------
    >>> h = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    >>> polish(torch.tensor([[0, 0]]), torch.tensor([[0.4, 0.4]]), h).tolist()
    [[1, 0]]
    """
    h = damp(moments)
    weights = h.diagonal() / Feedback.of(moments).mean_pivot if price else h.diagonal()
    found = symbols.double()
    costs = SymbolCosts.of(found) if price else None
    pull = (values.double() - found) @ h  # of each symbol towards less error
    for _ in range(_SWEEPS):
        for start in range(0, len(h), _COLUMNS):
            part = slice(start, start + _COLUMNS)
            near, within, before = pull[:, part].clone(), h[part, part], found[:, part].clone()
            for j in range(len(within)):
                best = before[:, j] + near[:, j] / within[j, j]
                if costs is None:
                    best = best.round()
                else:
                    best = choose(best, float(weights[start + j]), price, costs)
                found[:, start + j] = best
                near.addr_(best - before[:, j], within[j], alpha=-1)
            pull -= (found[:, part] - before) @ h[part]
    return found.to(torch.int32)


def damp(moments: Tensor, damping: float = DAMPING) -> Tensor:
    """Return moments, float64, with a share of their mean diagonal added to the diagonal."""
    h = moments.double()
    eye = torch.eye(len(h), dtype=torch.float64)
    mean = float(h.diagonal().mean())
    return h + damping * mean * eye if mean > 0 else (1 + damping) * eye  # no input but zeros
