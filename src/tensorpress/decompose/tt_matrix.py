"""Matrices as tensor trains over pairs of row and column modes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.decompose.tensor_algebra import check_cores, join_train, joining_macs
from tensorpress.decompose.tensor_train import tt_spectra, tt_svd
from tensorpress.decompose.tt_matvec import cheapest_tt_order, tt_join, tt_merge, tt_multiply
from tensorpress.errors import InvalidArgumentError


@dataclass(frozen=True)
class TTMatrix:
    """A matrix Ŵ of shape (m_1⋯m_d, n_1⋯n_d) as a tensor train.

    The entry in row (i_1, …, i_d) and column (j_1, …, j_d), with the last index fastest, is
    G_1[i_1, j_1] ⋯ G_d[i_d, j_d].

    Attributes
    ----------
    cores : tuple of Tensor
        The d cores G_k, of shapes (r_{k-1}, m_k, n_k, r_k) with r_0 = r_d = 1.
    relative_error : float
        ‖W − Ŵ‖ / ‖W‖ for the matrix W that was decomposed; 0 for a zero matrix.
    """

    cores: tuple[Tensor, ...]
    relative_error: float

    @property
    def row_modes(self) -> tuple[int, ...]:
        """The modes (m_1, …, m_d) of the rows."""
        return tuple(core.shape[1] for core in self.cores)

    @property
    def column_modes(self) -> tuple[int, ...]:
        """The modes (n_1, …, n_d) of the columns."""
        return tuple(core.shape[2] for core in self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The d − 1 inner ranks r_1, …, r_{d-1}."""
        return tuple(core.shape[3] for core in self.cores[:-1])

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m_1⋯m_d, n_1⋯n_d) of the matrix Ŵ."""
        return prod(self.row_modes), prod(self.column_modes)

    @property
    def num_params(self) -> int:
        """Number of stored values: Σ r_{k-1}·m_k·n_k·r_k."""
        return sum(core.numel() for core in self.cores)

    def to_tensor(self) -> Tensor:
        """Return the matrix Ŵ."""
        return tt_to_matrix(self.cores)

    def multiply(self, x: Tensor) -> Tensor:
        """Return the products Ŵx with vectors of shape (*, columns), of shape (*, rows).

        The matrix is never built; the contraction has the cheapest order for the number of vectors.
        """
        vectors = x.shape[:-1].numel()
        order = cheapest_tt_order(self.row_modes, self.column_modes, self.ranks, vectors=vectors)
        return tt_multiply(tt_merge(self.cores, order.groups), x, from_left=order.from_left)


def tt_matrix(
    matrix: Tensor,
    row_modes: Sequence[int],
    column_modes: Sequence[int],
    *,
    ranks: Sequence[int] | None = None,
    tolerance: float | None = None,
) -> TTMatrix:
    """Decompose a matrix into a tensor train over pairs of row and column modes.

    Parameters
    ----------
    matrix : Tensor
        Tensor of shape (m_1⋯m_d, n_1⋯n_d), any floating dtype; computed in float64.
    row_modes, column_modes : sequence of int
        The modes (m_1, …, m_d) of the rows and as many modes (n_1, …, n_d) of the columns.
    ranks : sequence of int, optional
        The d − 1 inner ranks, as for `tt_svd` of a tensor of shape (m_1·n_1, …, m_d·n_d).
    tolerance : float, optional
        Upper bound ε on the relative error, 0 ≤ ε < 1. Either this or ``ranks``.

    Returns
    -------
    TTMatrix
        Cores in the dtype of ``matrix``.

    Raises
    ------
    InvalidArgumentError
        If the modes do not multiply to the shape of the matrix, or `tt_svd` raises.

    References
    ----------
    Novikov, Podoprikhin, Osokin, Vetrov (2015), "Tensorizing neural networks", eq. 3-4.

    Examples
    --------
    >>> train = tt_matrix(torch.ones(6, 8), (2, 3), (2, 4), tolerance=0.1)
    >>> train.ranks, train.num_params, train.shape
    ((1,), 16, (6, 8))
    """
    tensor = _pair_modes(matrix, row_modes, column_modes)
    train = tt_svd(tensor, ranks=ranks, tolerance=tolerance)
    # A mode of size m_k·n_k becomes a row and a column mode.
    cores = [
        core.reshape(core.shape[0], m, n, -1)
        for core, m, n in zip(train.cores, row_modes, column_modes, strict=True)
    ]
    return TTMatrix(tuple(cores), train.relative_error)


def tt_matrix_spectra(
    matrix: Tensor, row_modes: Sequence[int], column_modes: Sequence[int]
) -> list[Spectrum]:
    """Return the spectra of the d − 1 unfoldings that `tt_matrix` truncates, as `tt_spectra` does.

    Parameters
    ----------
    matrix : Tensor
        Tensor of shape (m_1⋯m_d, n_1⋯n_d), any floating dtype.
    row_modes, column_modes : sequence of int
        The modes (m_1, …, m_d) of the rows and as many modes (n_1, …, n_d) of the columns.

    Raises
    ------
    InvalidArgumentError
        If the modes do not multiply to the shape of the matrix, or it has NaN or infinite values.

    Examples
    --------
    >>> spectra = tt_matrix_spectra(torch.ones(6, 8), (2, 3), (2, 4))
    >>> [len(spectrum.values) for spectrum in spectra]
    [4]
    """
    return tt_spectra(_pair_modes(matrix, row_modes, column_modes))


def tt_to_matrix(cores: Sequence[Tensor]) -> Tensor:
    """Contract the cores of a TT-matrix to the matrix; differentiable.

    Parameters
    ----------
    cores : sequence of Tensor
        d tensors of shapes (r_{k-1}, m_k, n_k, r_k), with r_0 = r_d = 1.

    Returns
    -------
    Tensor
        Tensor of shape (m_1⋯m_d, n_1⋯n_d).

    Raises
    ------
    InvalidArgumentError
        If the cores do not make a train.

    Examples
    --------
    >>> tt_to_matrix([torch.ones(1, 2, 1, 3), torch.ones(3, 1, 2, 1)]).tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """
    check_cores(cores, modes=2)
    return join_train(cores, [core.shape[1:3].numel() for core in cores], tt_join)[0, ..., 0]


def tt_rows(cores: Sequence[Tensor], indices: Tensor) -> Tensor:
    """Return rows of a TT-matrix without building the matrix; differentiable.

    Parameters
    ----------
    cores : sequence of Tensor
        d tensors of shapes (r_{k-1}, m_k, n_k, r_k), with r_0 = r_d = 1.
    indices : Tensor
        Row numbers from 0 to m_1⋯m_d − 1, of any shape (*) and any integer dtype.

    Returns
    -------
    Tensor
        Tensor of shape (*, n_1⋯n_d).

    Raises
    ------
    InvalidArgumentError
        If the cores do not make a train, or the indices are not integers.
    IndexError
        If a row number is out of range. On a GPU, a device-side assertion fails instead, as for an
        embedding.

    References
    ----------
    Hrinchuk, Khrulkov, Mirvakhabova, Orlova, Oseledets (2020), "Tensorized embedding layers".

    Examples
    --------
    >>> cores = [torch.eye(2).reshape(1, 2, 2, 1), torch.ones(1, 3, 1, 1)]
    >>> tt_rows(cores, torch.tensor([0, 5])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    check_cores(cores, modes=2)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise InvalidArgumentError(f"row numbers must be integers, got {indices.dtype}")
    # The row number i has the digits i_1, …, i_d, the last one fastest: row i is the train of the
    # slices G_k[i_k].
    remaining = indices.flatten()
    slices = []
    for core in reversed(cores[1:]):
        slices.append(_gather_rows(core, remaining % core.shape[1]))
        remaining = remaining.div(core.shape[1], rounding_mode="floor")
    # The first digit is not reduced by its mode, so that no row number out of range wraps around.
    slices.append(_gather_rows(cores[0], remaining))
    columns = [core.shape[2] for core in cores]
    return join_train(slices[::-1], columns).reshape(*indices.shape, prod(columns))


def tt_row_macs(column_modes: Sequence[int], ranks: Sequence[int]) -> int:
    """Return the multiply–accumulates of `tt_rows` for one row, from the inner ranks r_k.

    Examples
    --------
    >>> tt_row_macs((8, 8, 8), (16, 16))
    24576
    """
    return joining_macs(column_modes, ranks)


def _gather_rows(core: Tensor, rows: Tensor) -> Tensor:
    """Return the slices of a core (r, m, n, s) at row indices, of shape (rows, r, n, s)."""
    return core.transpose(0, 1).index_select(0, rows)


def _pair_modes(matrix: Tensor, row_modes: Sequence[int], column_modes: Sequence[int]) -> Tensor:
    """Return a matrix as a tensor of shape (m_1·n_1, …, m_d·n_d)."""
    _check_modes(matrix, row_modes, column_modes)
    # (m_1, …, m_d, n_1, …, n_d) → (m_1, n_1, …, m_d, n_d) → (m_1·n_1, …, m_d·n_d)
    order = len(row_modes)
    pairs = [axis for k in range(order) for axis in (k, order + k)]
    sizes = [m * n for m, n in zip(row_modes, column_modes, strict=True)]
    return matrix.reshape(*row_modes, *column_modes).permute(pairs).reshape(sizes)


def _check_modes(matrix: Tensor, row_modes: Sequence[int], column_modes: Sequence[int]) -> None:
    if matrix.ndim != 2:
        raise InvalidArgumentError(f"expected a matrix, got shape {tuple(matrix.shape)}")
    if len(row_modes) != len(column_modes) or not row_modes:
        raise InvalidArgumentError(
            "a TT-matrix needs as many row modes as column modes, at least one, "
            f"got {tuple(row_modes)} and {tuple(column_modes)}"
        )
    for kind, modes, size in zip(
        ("row", "column"), (row_modes, column_modes), matrix.shape, strict=True
    ):
        if min(modes) < 1 or prod(modes) != size:
            raise InvalidArgumentError(
                f"the {kind} modes {tuple(modes)} must be positive and multiply to the matrix's "
                f"{size} {kind}s, got a product of {prod(modes)}"
            )
