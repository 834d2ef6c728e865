"""Second moments of wide layers' inputs, as linear maps that are never formed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowMoment:
    r"""The second moment :math:`\Sigma = X^T X / N + c I` by N rows X, fewer than columns.

    A product with it takes two products with the rows, in their precision, and no columns × columns
    matrix.

    Attributes
    ----------
    rows : Tensor
        The rows X, (groups, rows, columns).
    white : Tensor
        The white energy c, (groups,).

    Examples
    --------
    >>> x = torch.randn(1, 5, 20)
    >>> kernel = torch.randn(1, 3, 20)
    >>> torch.allclose(kernel @ RowMoment(x, torch.zeros(1)), kernel @ x.mT @ x / 5, atol=1e-4)
    True
    """

    rows: Tensor
    white: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape as a matrix, (groups, columns, columns)."""
        groups, _, columns = self.rows.shape
        return groups, columns, columns

    def __rmatmul__(self, kernel: Tensor) -> Tensor:
        """Return K Σ for a kernel K, (groups, out, columns)."""
        seen = (kernel.to(self.rows) @ self.rows.mT / self.rows.shape[1]) @ self.rows
        return seen.to(kernel) + self.white[:, None, None].to(kernel) * kernel

    def mean_energy(self) -> Tensor:
        """Return the mean of the diagonal, (groups,), float64."""
        norms: Tensor = torch.linalg.vector_norm(self.rows, dim=(1, 2))
        return norms.double().square() / self.rows[0].numel() + self.white.double()

    def to_matrix(self) -> Tensor:
        """Return Σ in float64, (groups, columns, columns)."""
        rows = self.rows.double()
        eye = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
        return rows.mT @ rows / rows.shape[1] + self.white.to(rows)[:, None, None] * eye


@dataclass(frozen=True)
class BlockMoment:
    """A block-diagonal second moment, of blocks of consecutive columns.

    Attributes
    ----------
    blocks : sequence of Tensor
        The blocks, each (groups, columns, columns).

    Examples
    --------
    >>> second = BlockMoment([torch.eye(2)[None], 3 * torch.eye(1)[None]])
    >>> torch.ones(1, 1, 3) @ second
    tensor([[[1., 1., 3.]]])
    """

    blocks: Sequence[Tensor]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape as a matrix, (groups, columns, columns)."""
        columns = sum(block.shape[-1] for block in self.blocks)
        return len(self.blocks[0]), columns, columns

    def __rmatmul__(self, kernel: Tensor) -> Tensor:
        """Return K Σ for a kernel K, (groups, out, columns)."""
        parts = torch.split(kernel, [block.shape[-1] for block in self.blocks], dim=-1)
        return torch.cat(
            [part @ b.to(part) for part, b in zip(parts, self.blocks, strict=True)], -1
        )

    def mean_energy(self) -> Tensor:
        """Return the mean of the diagonal, (groups,)."""
        return torch.cat([b.diagonal(dim1=-2, dim2=-1) for b in self.blocks], -1).mean(-1)


@dataclass(frozen=True)
class DiagonalMoment:
    """A diagonal second moment, such as that of one-hot vectors.

    Attributes
    ----------
    diagonal : Tensor
        (groups, columns).

    Examples
    --------
    >>> torch.ones(1, 1, 3) @ DiagonalMoment(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[[1., 2., 3.]]])
    """

    diagonal: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the full matrix: (groups, columns, columns)."""
        groups, columns = self.diagonal.shape
        return groups, columns, columns

    def __rmatmul__(self, kernel: Tensor) -> Tensor:
        """Return K Σ for a kernel K, (groups, out, columns)."""
        return kernel * self.diagonal[:, None].to(kernel)

    def mean_energy(self) -> Tensor:
        """Return the mean of the diagonal, (groups,)."""
        return self.diagonal.mean(-1)


SecondMoment = Tensor | RowMoment | BlockMoment | DiagonalMoment
"""Σ, (groups, columns, columns): it has a shape, K @ Σ and `mean_energy`."""


def mean_energy(second: SecondMoment) -> Tensor:
    """Return the mean of the diagonal of a second moment, (groups,)."""
    if isinstance(second, Tensor):
        return second.diagonal(dim1=-2, dim2=-1).mean(-1)
    return second.mean_energy()
