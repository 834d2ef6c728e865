"""Least squares of a layer's responses on its inputs."""

import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.second_moment import RowMoment

DAMPING = 1e-4
"""How strongly a kernel is drawn to its prior, relative to the mean second moment."""

MOST_ROWS = 200_000
"""More rows count as this many, because float32 products have rounding errors of that size."""

_LEAST = 1e-30  # so that the moment of zero inputs can be inverted


class Regression:
    """Least squares of responses on the inputs of a layer, over its kernel and bias.

    With centred inputs, the error of a kernel is the error of the best kernel plus their distance
    in the norm of the inputs' second moment. The best bias follows from the means. Directions in
    which inputs do not vary are taken from a prior kernel.

    Parameters
    ----------
    inputs : Tensor
        Vectors that the kernel is multiplied with, shape (rows, groups, columns).
    biased : bool
        Whether there is a bias; otherwise nothing is centred, and the bias is 0.
    shrink : bool
        Whether to add white rows (see `shrunk`), to which the kernel responds as the prior does.

    Raises
    ------
    InvalidArgumentError
        If squares of the inputs are not finite.

    Attributes
    ----------
    moment : Tensor or RowMoment
        Mean of x xᵀ over (centred) inputs and white rows, (groups, columns, columns): a matrix in
        float64, or a `RowMoment` if there are fewer rows than columns.
    mean : Tensor
        Mean of the inputs, (groups, columns), float64; 0 without a bias.

    Examples
    --------
    >>> x = torch.randn(50, 1, 3)
    >>> y = x @ torch.tensor([[[2.0], [0.0], [1.0]]]) + 5
    >>> regression = Regression(x)
    >>> kernel = regression.kernel(y, prior=torch.zeros(1, 1, 3))
    >>> bias = regression.bias(y, kernel)
    >>> (kernel.abs().sum() - 3).abs() < 1e-2, (bias - 5).abs() < 1e-2
    (tensor(True), tensor([[True]]))
    """

    def __init__(self, inputs: Tensor, *, biased: bool = True, shrink: bool = False) -> None:
        self._biased = biased
        self.mean = _mean(inputs) * biased  # (groups, columns)
        # In the precision of the inputs: products of many rows dominate all work.
        self._inputs = (inputs - self.mean.to(inputs.dtype)).movedim(0, 1)  # (groups, rows, n)
        rows, columns = len(inputs), inputs.shape[-1]
        self._dual = rows < columns
        x = self._inputs.mT if self._dual else self._inputs
        self._seen = (x.mT @ x).double() / rows  # X Xᵀ, or of fewer rows than columns Xᵀ X
        if not bool(torch.isfinite(self._seen).all()):
            raise InvalidArgumentError(
                f"inputs as large as {float(inputs.abs().max()):.1e} cannot be fitted: their "
                "squares are not finite"
            )
        rounding = torch.finfo(inputs.dtype).eps * self.mean.square().mean(-1)
        trace = self._seen.diagonal(dim1=-2, dim2=-1).sum(-1)
        white = white_energy(trace, rows) * shrink
        damping = (DAMPING * trace / columns + rounding).clamp_min(_LEAST)
        self._factor = damped_cholesky(self._seen, white + damping)
        self.moment: Tensor | RowMoment
        if self._dual:
            self.moment = RowMoment(self._inputs, white)
        else:
            eye = torch.eye(columns, dtype=torch.float64, device=inputs.device)
            self.moment = self._seen + white[:, None, None] * eye

    @property
    def second(self) -> Tensor:
        """The moment as a matrix, (groups, columns, columns), float64."""
        return self.moment if isinstance(self.moment, Tensor) else self.moment.to_matrix()

    def kernel(self, responses: Tensor, prior: Tensor) -> Tensor:
        """Return the kernel (groups, out, columns) that fits responses (rows, groups, out)."""
        centred = responses - (_mean(responses) * self._biased).to(responses.dtype)
        if self._dual:
            # W = P + (Y - P X) (Xᵀ X + damping)⁻¹ Xᵀ, with rows × rows numbers to invert
            left = centred.movedim(0, -1) - prior.to(self._inputs) @ self._inputs.mT
            solved = torch.cholesky_solve(left.double().mT / len(responses), self._factor).mT
            return prior.double() + (solved.to(self._inputs) @ self._inputs).double()
        slope = (centred.movedim(0, -1) @ self._inputs).double() / len(responses)
        gap = slope - prior.double() @ self._seen  # what the prior leaves of Y Xᵀ
        # W = P + (Y Xᵀ - P X Xᵀ) (X Xᵀ + damping)⁻¹, with P the prior
        return prior.double() + torch.cholesky_solve(gap.mT, self._factor).mT

    def bias(self, responses: Tensor, kernel: Tensor) -> Tensor:
        """Return the best bias (groups, out) of a kernel."""
        # b = mean(y) - W mean(x)
        left = _mean(responses) - (kernel.double() @ self.mean[..., None])[..., 0]
        return left * self._biased


def shrunk(second: Tensor, rows: int) -> Tensor:
    """Return second moments as if white rows, as many as columns, had been added.

    White rows have the mean energy of the real ones. They hardly change the moments of many rows.
    Added to few or similar rows, they preserve the response to other inputs.

    Parameters
    ----------
    second : Tensor
        Mean of x xᵀ over rows, (groups, columns, columns).
    rows : int
        The number of rows.

    References
    ----------
    Shrinkage to a multiple of the identity: Ledoit and Wolf (2004); the amount is our choice.

    Examples
    --------
    >>> shrunk(torch.tensor([[[4.0, 0.0], [0.0, 0.0]]]), rows=8)
    tensor([[[4.5000, 0.0000],
             [0.0000, 0.5000]]])
    """
    trace = second.diagonal(dim1=-2, dim2=-1).sum(-1)
    eye = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
    return second + white_energy(trace, rows)[:, None, None] * eye


def white_energy(trace: Tensor, rows: int) -> Tensor:
    """Return the energy that the white rows of `shrunk` add to the diagonal of a moment."""
    return trace / min(rows, MOST_ROWS)


def damped_cholesky(second: Tensor, damping: Tensor) -> Tensor:
    """Return the Cholesky factor of damped moments, damped further until they are definite.

    Examples
    --------
    >>> damped_cholesky(torch.tensor([[[3.0]]]), torch.tensor([1.0]))
    tensor([[[2.]]])
    """
    while True:
        damped = second.clone()
        damped.diagonal(dim1=-2, dim2=-1).add_(damping[:, None])
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            return factor
        damping = torch.where(failed > 0, 10 * damping, damping)


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(0, dtype=torch.float64)
