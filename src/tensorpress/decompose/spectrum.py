"""Singular values and leading bases of matrices, from the Gram matrix of the smaller side."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError

GRAM_BLOCK = 256
"""Rows of a Gram matrix that are computed together; narrower products are slower."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix and its singular vectors on the smaller side.

    Rank rules need the values, and decompositions start from the vectors. The values are square
    roots of eigenvalues of a Gram matrix, accurate to about 1e-8 of the largest.

    Attributes
    ----------
    values : Tensor
        Singular values of shape (*batch, L), L = min(rows, columns), descending, float64.
    vectors : Tensor
        Orthonormal columns of shape (*batch, L, L) in the same order, float64: left singular
        vectors where rows ≤ columns, right singular vectors otherwise.
    rows, columns : int
        Shape of the matrix.
    """

    values: Tensor
    vectors: Tensor
    rows: int
    columns: int


def spectrum(matrix: Tensor) -> Spectrum:
    """Return the singular values of a matrix and its singular vectors on the smaller side.

    Parameters
    ----------
    matrix : Tensor
        Tensor of shape (*batch, rows, columns), any floating dtype; leading axes are a stack of
        matrices.

    Returns
    -------
    Spectrum
        Values and vectors in float64; values below about 1e-8 of the largest are rounding errors.

    Raises
    ------
    InvalidArgumentError
        If the tensor has fewer than two axes, or NaN or infinite values.

    Examples
    --------
    >>> result = spectrum(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]))
    >>> result.values.tolist(), tuple(result.vectors.shape)
    ([4.0, 3.0], (2, 2))
    """
    # The eigenvalues of AAᵀ or AᵀA are σ², its eigenvectors the singular vectors of that side.
    values2, vectors = _descending_eigh(_small_gram(_check_matrix(matrix)))
    rows, columns = matrix.shape[-2:]
    return Spectrum(values2.clamp_min(0).sqrt(), vectors, rows, columns)


def singular_values(matrix: Tensor) -> Tensor:
    """Return only the singular values of a matrix, which costs less than its `spectrum`.

    Parameters
    ----------
    matrix : Tensor
        Tensor of shape (*batch, rows, columns), any floating dtype.

    Returns
    -------
    Tensor
        Tensor of shape (*batch, min(rows, columns)), descending, float64, accurate to about 1e-8 of
        the largest value.

    Raises
    ------
    InvalidArgumentError
        If the tensor has fewer than two axes, or NaN or infinite values.

    Examples
    --------
    >>> singular_values(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])).tolist()
    [4.0, 3.0]
    """
    # σ² are the eigenvalues of AAᵀ or AᵀA.
    values2: Tensor = torch.linalg.eigvalsh(_small_gram(_check_matrix(matrix)))
    return values2.flip(-1).clamp_min(0).sqrt()


def leading_basis(matrix: Tensor, rank: int, spectrum: Spectrum | None = None) -> Tensor:
    """Return an orthonormal basis of the leading left singular directions of a matrix.

    Parameters
    ----------
    matrix : Tensor
        Tensor of shape (*batch, rows, columns), any floating dtype.
    rank : int
        Number of columns of the basis, 1 ≤ rank ≤ rows. If the matrix has a lower rank, arbitrary
        columns complete the basis.
    spectrum : Spectrum, optional
        The spectrum of the matrix, if it is known.

    Returns
    -------
    Tensor
        Tensor of shape (*batch, rows, rank) in the dtype of ``matrix``, in order of falling energy.

    Raises
    ------
    InvalidArgumentError
        If the rank is out of range, the spectrum has another shape, or the matrix has NaN or
        infinite values.

    Examples
    --------
    >>> leading_basis(torch.tensor([[0.0, 0.0, 0.0], [0.0, 4.0, 0.0]]), 1).abs().tolist()
    [[0.0], [1.0]]
    """
    exact = _check_matrix(matrix)
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
    """Check that a spectrum fits a matrix of shape (*batch, rows, columns).

    Raises
    ------
    InvalidArgumentError
        If the spectrum is of a matrix of another shape.
    """
    rows, columns = shape[-2:]
    expected = (*shape[:-2], min(rows, columns))
    if (spectrum.rows, spectrum.columns) != (rows, columns) or spectrum.values.shape != expected:
        raise InvalidArgumentError(
            f"a spectrum of shape {tuple(spectrum.values.shape)} of {spectrum.rows}×"
            f"{spectrum.columns} matrices does not belong to a matrix of shape {tuple(shape)}"
        )


def leading_directions(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the leading basis of a matrix, and the energy Σσ² that it captures.

    Unlike `leading_basis`, this function does not check its arguments.

    Parameters
    ----------
    matrix : Tensor
        Tensor of shape (*batch, rows, columns), in working precision.
    rank : int
        Number of columns of the basis, 1 ≤ rank ≤ rows.

    Returns
    -------
    Tensor, Tensor
        The basis of shape (*batch, rows, rank) and energies of shape (*batch,).
    """
    # AAᵀ = UΣ²Uᵀ or AᵀA = VΣ²Vᵀ; the leading r directions capture σ_1² + … + σ_r².
    values2, vectors = _descending_eigh(_small_gram(matrix))
    return _left_basis(matrix, vectors, rank), values2[..., :rank].clamp_min(0).sum(-1)


def _small_gram(matrix: Tensor) -> Tensor:
    """Return the Gram matrix of the smaller side, AAᵀ or AᵀA, or only its lower triangle.

    The eigensolvers read nothing else.
    """
    rows, columns = matrix.shape[-2:]
    side = matrix if rows <= columns else matrix.mT
    size = side.shape[-2]
    if size <= GRAM_BLOCK:
        return side @ side.mT
    # Blocks of rows up to and including the diagonal take little more than half of the products.
    gram = side.new_zeros(*side.shape[:-1], size)
    for begin in range(0, size, GRAM_BLOCK):
        end = begin + GRAM_BLOCK
        gram[..., begin:end, :end] = side[..., begin:end, :] @ side[..., :end, :].mT
    return gram


def _descending_eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors in descending order."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(-1), vectors.flip(-1)


def _left_basis(matrix: Tensor, vectors: Tensor, rank: int) -> Tensor:
    """Return the leading left basis, from the singular vectors of the smaller side."""
    rows, columns = matrix.shape[-2:]
    if rows <= columns:  # the vectors are those of the left side already
        return vectors[..., :rank]
    # AV = UΣ: its QR has the left vectors in order, and completes the basis where Σ has zeros.
    images = matrix @ vectors[..., :rank]
    basis: Tensor = torch.linalg.qr(pad(images, (0, rank - images.shape[-1]))).Q
    return basis


def _check_matrix(matrix: Tensor) -> Tensor:
    """Return a matrix or a stack of matrices in working precision."""
    if matrix.ndim < 2:
        raise InvalidArgumentError(
            f"expected a matrix or a stack of matrices, got shape {tuple(matrix.shape)}"
        )
    return to_working_precision(matrix)
