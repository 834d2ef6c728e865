"""Singular values and leading bases of matrices, from the Gram matrix of the smaller side."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError

GRAM_BLOCK = 256
"""Rows of a Gram matrix computed together, up to the diagonal: narrower products are slower."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix and its singular vectors on the smaller side.

    Computed once, a spectrum serves the rank rules as well as the start of the decomposition.
    The values are roots of a Gram matrix's eigenvalues: accurate to about 1e-8 of the largest.

    Attributes
    ----------
    values : Tensor
        Shape (*batch, L), L = min(rows, columns), descending, float64.
    vectors : Tensor
        Shape (*batch, L, L), orthonormal columns in the same order, float64: left singular vectors
        where rows ≤ columns, right ones otherwise.
    rows, columns : int
        Of the matrix.
    """

    values: Tensor
    vectors: Tensor
    rows: int
    columns: int


def spectrum(matrix: Tensor) -> Spectrum:
    """Return the singular values and the small-side singular vectors of a matrix.

    Parameters
    ----------
    matrix : Tensor
        Shape (*batch, rows, columns), any floating dtype; leading axes are a stack of matrices.

    Returns
    -------
    Spectrum
        In float64; singular values below about 1e-8 of the largest are rounding errors.

    Raises
    ------
    InvalidArgumentError
        For fewer than two axes, or NaN or infinite values.

    Examples
    --------
    >>> found = spectrum(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]))
    >>> found.values.tolist(), tuple(found.vectors.shape)
    ([4.0, 3.0], (2, 2))
    """
    values2, vectors = _descending_eigh(_small_gram(_working_matrix(matrix)))
    rows, columns = matrix.shape[-2:]
    return Spectrum(values2.clamp_min(0).sqrt(), vectors, rows, columns)


def singular_values(matrix: Tensor) -> Tensor:
    """Return only the singular values of a matrix, for less than the whole spectrum costs.

    Parameters
    ----------
    matrix : Tensor
        Shape (*batch, rows, columns), any floating dtype.

    Returns
    -------
    Tensor
        Shape (*batch, min(rows, columns)), descending, float64, accurate to about 1e-8 of the
        largest.

    Raises
    ------
    InvalidArgumentError
        For fewer than two axes, or NaN or infinite values.

    Examples
    --------
    >>> singular_values(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])).tolist()
    [4.0, 3.0]
    """
    values2: Tensor = torch.linalg.eigvalsh(_small_gram(_working_matrix(matrix)))
    return values2.flip(-1).clamp_min(0).sqrt()


def leading_basis(matrix: Tensor, rank: int, spectrum: Spectrum | None = None) -> Tensor:
    """Return an orthonormal basis of the leading left singular directions of a matrix.

    Parameters
    ----------
    matrix : Tensor
        Shape (*batch, rows, columns), any floating dtype.
    rank : int
        Number of columns of the basis, 1 ≤ rank ≤ rows. Where the matrix has fewer directions,
        arbitrary ones complete the basis.
    spectrum : Spectrum, optional
        Of this matrix, where it is known.

    Returns
    -------
    Tensor
        Shape (*batch, rows, rank), in the dtype of ``matrix``, most energetic direction first.

    Raises
    ------
    InvalidArgumentError
        For a rank out of range, a spectrum of another shape, or NaN or infinite values.

    Examples
    --------
    >>> leading_basis(torch.tensor([[0.0, 0.0, 0.0], [0.0, 4.0, 0.0]]), 1).abs().tolist()
    [[0.0], [1.0]]
    """
    exact = _working_matrix(matrix)
    rows = matrix.shape[-2]
    if not 1 <= rank <= rows:
        raise InvalidArgumentError(
            f"rank {rank} does not fit {rows} rows: the basis of a matrix of shape "
            f"{tuple(matrix.shape)} has 1 to {rows} columns"
        )
    if spectrum is None:
        return leading_directions(exact, rank)[0].to(matrix.dtype)
    check_spectrum(spectrum, matrix.shape)
    return _left_basis(exact, spectrum.vectors.to(exact), rank).to(matrix.dtype)


def check_spectrum(spectrum: Spectrum, shape: tuple[int, ...]) -> None:
    """Raise unless a spectrum has the shape of that of a matrix (*batch, rows, columns)."""
    rows, columns = shape[-2:]
    expected = (*shape[:-2], min(rows, columns))
    if (spectrum.rows, spectrum.columns) != (rows, columns) or spectrum.values.shape != expected:
        raise InvalidArgumentError(
            f"a spectrum of shape {tuple(spectrum.values.shape)} of {spectrum.rows}×"
            f"{spectrum.columns} matrices does not belong to a matrix of shape {tuple(shape)}"
        )


def leading_directions(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return a leading basis and the energies Σσ² it captures, of values known to be sound.

    Parameters
    ----------
    matrix : Tensor
        Shape (*batch, rows, columns), in working precision.
    rank : int
        1 ≤ rank ≤ rows.

    Returns
    -------
    Tensor, Tensor
        Shapes (*batch, rows, rank) and (*batch,).
    """
    values2, vectors = _descending_eigh(_small_gram(matrix))
    return _left_basis(matrix, vectors, rank), values2[..., :rank].clamp_min(0).sum(-1)


def _small_gram(matrix: Tensor) -> Tensor:
    """Return the lower triangle of the Gram matrix of the smaller side; nothing else is read."""
    rows, columns = matrix.shape[-2:]
    side = matrix if rows <= columns else matrix.mT
    size = side.shape[-2]
    if size <= GRAM_BLOCK:
        return side @ side.mT
    gram = side.new_zeros(*side.shape[:-1], size)
    for begin in range(0, size, GRAM_BLOCK):
        end = begin + GRAM_BLOCK
        gram[..., begin:end, :end] = side[..., begin:end, :] @ side[..., :end, :].mT
    return gram


def _descending_eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(-1), vectors.flip(-1)


def _left_basis(matrix: Tensor, vectors: Tensor, rank: int) -> Tensor:
    """Return the leading left basis, from the singular vectors of the smaller side."""
    rows, columns = matrix.shape[-2:]
    if rows <= columns:
        return vectors[..., :rank]
    images = matrix @ vectors[..., :rank]
    # QR keeps the order of the directions, and completes the basis where there are too few.
    basis: Tensor = torch.linalg.qr(pad(images, (0, rank - images.shape[-1]))).Q
    return basis


def _working_matrix(matrix: Tensor) -> Tensor:
    if matrix.ndim < 2:
        raise InvalidArgumentError(
            f"a matrix or a stack of matrices is needed, got shape {tuple(matrix.shape)}"
        )
    return to_working_precision(matrix)
