"""Truncated singular value decomposition of matrices and stacks of matrices."""

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from tensorpress.decompose.precision import energy, projection_error, to_working_precision
from tensorpress.decompose.spectrum import Spectrum, check_spectrum, leading_directions
from tensorpress.errors import InvalidArgumentError, unknown_name

Method = Literal["gram", "exact", "randomized"]

OVERSAMPLING = 10
"""Number of directions of a randomized range beyond the rank (Halko et al., section 4.3)."""

POWER_ITERATIONS = 12
"""Largest number of power iterations (section 4.5); spectra of trained weights fall slowly."""

SETTLED = 1e-2
"""Power iterations end once one captures less than this share of the remaining energy."""

SMALL_ERROR = 0.05
"""Relative error below which the range is refined in float64 instead of float32."""

LOW_RANK, LARGE = 1 / 16, 512
"""Up to this share of the smaller side as rank, and from this size of it, "randomized" is used."""


@dataclass(frozen=True)
class SVD:
    """A truncated singular value decomposition u · diag(s) · vᵀ, or a stack of them.

    Attributes
    ----------
    u, v : Tensor
        Left and right singular vectors, orthonormal columns of shapes (*batch, m, r) and
        (*batch, n, r).
    s : Tensor
        Singular values of shape (*batch, r), descending.
    relative_error : float
        ‖A − u·diag(s)·vᵀ‖ / ‖A‖ of the whole stack, before rounding to the dtype of A; 0 for a zero
        matrix.
    """

    u: Tensor
    s: Tensor
    v: Tensor
    relative_error: float

    def to_tensor(self) -> Tensor:
        """Return the approximation u · diag(s) · vᵀ, of shape (*batch, m, n)."""
        return (self.u * self.s[..., None, :]) @ self.v.mT

    @property
    def num_params(self) -> int:
        """Number of stored values, r·(m + n) for a matrix, with s absorbed into u or v."""
        return self.u.numel() + self.v.numel()


def truncated_svd(
    matrix: Tensor, rank: int, *, method: Method | None = None, spectrum: Spectrum | None = None
) -> SVD:
    """Return the leading singular triplets of a matrix, or of every matrix of a stack.

    Parameters
    ----------
    matrix : Tensor
        Tensor of shape (*batch, m, n), any floating dtype; computed in float64.
    rank : int
        Number of triplets, 1 ≤ rank ≤ min(m, n).
    method : {"gram", "exact", "randomized"}, optional
        "gram" takes the eigenvectors of the Gram matrix of the smaller side, which is fast and
        accurate to about 1e-8 of the largest singular value. "exact" is the SVD of LAPACK.
        "randomized" finds the range by random projection and power iterations for as long as they
        lower the error, which is fast for ranks far below min(m, n); its error is up to 1 % above
        the smallest possible. The default is "randomized" for ranks up to min(m, n) / 16 if min(m,
        n) ≥ 512 and no spectrum is passed, and "gram" otherwise.
    spectrum : Spectrum, optional
        The spectrum of the matrix, if it is known. It saves "gram" the eigenvectors; other methods
        ignore it.

    Returns
    -------
    SVD
        Factors in the dtype of ``matrix``.

    Raises
    ------
    InvalidArgumentError
        If the rank is out of range, the tensor has fewer than two axes, NaN or infinite values, the
        method is unknown, or the spectrum has another shape.

    References
    ----------
    Halko, Martinsson, Tropp (2011), "Finding structure with randomness", Algs. 4.4 and 5.1, for
    "randomized".

    Examples
    --------
    >>> svd = truncated_svd(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]), 1)
    >>> svd.s.tolist(), svd.relative_error
    ([4.0], 0.6)
    """
    if method is not None and method not in get_args(Method):
        raise unknown_name("SVD method", method, get_args(Method))
    largest = min(matrix.shape[-2:]) if matrix.ndim > 1 else 0
    if not 1 <= rank <= largest:
        raise InvalidArgumentError(
            f"rank {rank} does not fit: a matrix of shape {tuple(matrix.shape)} "
            f"has a truncated SVD of rank 1 to {largest}"
        )
    if spectrum is not None:
        check_spectrum(spectrum, matrix.shape)
    elif method is None and largest >= LARGE and rank <= LOW_RANK * largest:
        method = "randomized"
    exact = to_working_precision(matrix)
    rows, columns = matrix.shape[-2:]
    wide = exact if rows <= columns else exact.mT
    if method == "exact":
        u, s, vt = torch.linalg.svd(wide, full_matrices=False)
        u, s, v = u[..., :rank], s[..., :rank], vt.mT[..., :rank]
    elif method == "randomized":
        u, s, v = _randomized(wide, rank)
    elif spectrum is None:
        u, s, v = _project(wide, leading_directions(wide, rank)[0])
    else:
        u, s, v = _project(wide, spectrum.vectors[..., :rank].to(wide))
    # ‖A − UUᵀA‖² = ‖A‖² − Σσ²
    error = projection_error(wide, float(s.square().sum()), lambda: (u * s[..., None, :]) @ v.mT)
    if rows > columns:
        u, v = v, u
    dtype = matrix.dtype
    return SVD(u.to(dtype), s.to(dtype), v.to(dtype), error)


def _project(matrix: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular triplets of UUᵀA, for left singular vectors U of A."""
    # UᵀA = ΣVᵀ: the norms of its rows are the singular values.
    projected = u.mT @ matrix
    s = torch.linalg.vector_norm(projected, dim=-1)
    if bool((s.amin(-1) > 1e-3 * s.amax(-1)).all()):
        return u, s, projected.mT / s[..., None, :]
    # Rows of small singular values are too inaccurate to divide by the value: UᵀA = RΣVᵀ instead.
    rotation, s, vt = torch.linalg.svd(projected, full_matrices=False)
    return u @ rotation, s, vt.mT


def _randomized(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular triplets from a random projection of the range."""
    norm = torch.linalg.vector_norm(matrix)
    single = (matrix / (norm + (norm == 0))).float()
    width = min(rank + OVERSAMPLING, *matrix.shape[-2:])
    generator = torch.Generator().manual_seed(0)
    test = torch.randn(matrix.shape[-1], width, generator=generator, device="cpu").to(single)
    basis, left_out = _improve_range(single, torch.linalg.qr(single @ test).Q)
    if left_out < SMALL_ERROR**2:
        basis, _ = _improve_range(matrix, basis.to(matrix))
    # Alg. 5.1: with QᵀA = UΣVᵀ, A ≈ (QU)ΣVᵀ.
    basis = torch.linalg.qr(basis.to(matrix)).Q
    inside = basis.mT @ matrix
    u, s, v = _project(inside, leading_directions(inside, rank)[0])
    return basis @ u, s, v


def _improve_range(matrix: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """Return the basis after power iterations, and the share of the energy outside it.

    It spans (AAᵀ)^q Q, orthonormalized after every product (Alg. 4.4).
    """
    total = energy(matrix)
    before = inf
    for _ in range(POWER_ITERATIONS):
        images = matrix.mT @ basis
        # ‖A − QQᵀA‖² = ‖A‖² − ‖AᵀQ‖²
        captured = energy(images)
        left_out = max(1 - captured / total, 0.0) if total else 0.0
        if before - left_out <= SETTLED * left_out:
            break
        before, basis = left_out, torch.linalg.qr(matrix @ torch.linalg.qr(images).Q).Q
    return basis, left_out
