"""Tensor trains: decomposition by truncated unfoldings, and rounding to lower ranks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from operator import mul

import torch
from torch import Tensor

from tensorpress.decompose.precision import to_working_precision
from tensorpress.decompose.spectrum import Spectrum, leading_basis, spectrum
from tensorpress.decompose.tensor_algebra import check_cores, tt_to_tensor
from tensorpress.decompose.tt_ranks import attainable_tt_ranks
from tensorpress.errors import InvalidArgumentError

GRAM_TOLERANCE = 1e-6
"""Relative errors below this need singular values that a Gram matrix cannot resolve."""

ROUNDING = 1e-13
"""Relative rounding error of float64: the smallest tolerance that truncations use."""


@dataclass(frozen=True)
class TensorTrain:
    """A tensor train Â[i_1, …, i_d] = G_1[i_1] ⋯ G_d[i_d].

    Attributes
    ----------
    cores : tuple of Tensor
        The d cores G_k, of shapes (r_{k-1}, n_k, r_k) with r_0 = r_d = 1.
    relative_error : float
        ‖A − Â‖ / ‖A‖ for the tensor or the train A that was decomposed; 0 for a zero tensor.
    """

    cores: tuple[Tensor, ...]
    relative_error: float

    @property
    def ranks(self) -> tuple[int, ...]:
        """The d − 1 inner ranks r_1, …, r_{d-1}."""
        return tuple(core.shape[-1] for core in self.cores[:-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (n_1, …, n_d) of the tensor Â."""
        return tuple(core.shape[1] for core in self.cores)

    @property
    def num_params(self) -> int:
        """Number of stored values: Σ r_{k-1}·n_k·r_k."""
        return sum(core.numel() for core in self.cores)

    def to_tensor(self) -> Tensor:
        """Return the tensor Â of shape (n_1, …, n_d)."""
        return tt_to_tensor(self.cores)


def tt_spectra(tensor: Tensor) -> list[Spectrum]:
    """Return the spectra of the d − 1 unfoldings (n_1…n_k, n_{k+1}…n_d) of a tensor.

    The k-th spectrum gives the error of truncating the k-th rank alone, which is a lower bound of
    the error of a train.

    Raises
    ------
    InvalidArgumentError
        If the tensor has no modes, no entries, or NaN or infinite values.

    Examples
    --------
    >>> [len(spectrum.values) for spectrum in tt_spectra(torch.ones(2, 3, 4))]
    [2, 4]
    """
    exact = _check_tensor(tensor)
    rows = accumulate(tensor.shape[:-1], mul)
    return [spectrum(exact.reshape(count, -1)) for count in rows]


def tt_svd(
    tensor: Tensor, *, ranks: Sequence[int] | None = None, tolerance: float | None = None
) -> TensorTrain:
    """Decompose a tensor into a train by truncating one unfolding after the other.

    The error is at most √(d−1) times that of the best train of the same ranks.

    Parameters
    ----------
    tensor : Tensor
        Tensor of shape (n_1, …, n_d), d ≥ 1, any floating dtype; computed in float64.
    ranks : sequence of int, optional
        The d − 1 inner ranks, each from 1 to its value in `largest_tt_ranks`; `attainable_tt_ranks`
        lowers those that their neighbours make impossible.
    tolerance : float, optional
        Upper bound ε on the relative error, 0 ≤ ε < 1, which determines the ranks. Either this or
        ``ranks``.

    Returns
    -------
    TensorTrain
        Cores in the dtype of ``tensor``. All but the last have orthonormal left unfoldings of shape
        (r_{k-1}·n_k, r_k), so that the energies discarded in all steps sum to the squared error.

    Raises
    ------
    InvalidArgumentError
        If both or none of ranks and tolerance are given, either is out of range, or the tensor has
        no modes, no entries, or NaN or infinite values.

    References
    ----------
    Oseledets (2011), "Tensor-train decomposition", SIAM J. Sci. Comput. 33(5), Alg. 1, Thm. 2.2.

    Examples
    --------
    >>> train = tt_svd(torch.ones(2, 3, 4), tolerance=0.1)
    >>> train.ranks, train.num_params
    ((1, 1), 9)
    """
    shape = tensor.shape
    exact = _check_tensor(tensor)
    energy = float(exact.square().sum())
    limits = _truncation_limits(shape, ranks, tolerance, energy)
    is_resolved = tolerance is None or tolerance >= GRAM_TOLERANCE
    truncate = _truncate_by_gram if is_resolved else _truncate_by_svd
    cores, discarded, rest, rank = [], 0.0, exact, 1
    for size, limit in zip(shape[:-1], limits, strict=True):
        # Unfold the rest to (r_{k-1}·n_k, n_{k+1} ⋯ n_d) ≈ U_k R: U_k becomes the core, R the rest.
        basis, rest, step_energy = truncate(rest.reshape(rank * size, -1), limit)
        cores.append(basis.reshape(rank, size, -1))
        rank = basis.shape[1]
        discarded += step_energy
    cores.append(rest.reshape(rank, shape[-1], 1))
    return _make_train(cores, tensor.dtype, discarded, energy)


def tt_round(
    train: TensorTrain, *, ranks: Sequence[int] | None = None, tolerance: float | None = None
) -> TensorTrain:
    """Truncate a train to lower ranks without building its tensor.

    Parameters
    ----------
    train : TensorTrain
        Cores of any floating dtype; computed in float64.
    ranks : sequence of int, optional
        The d − 1 inner ranks, as for `tt_svd`; ranks that the train does not reach stay lower.
    tolerance : float, optional
        Upper bound ε on the relative error, 0 ≤ ε < 1. Either this or ``ranks``.

    Returns
    -------
    TensorTrain
        The rounded train, whose ``relative_error`` is relative to ``train``.

    Raises
    ------
    InvalidArgumentError
        If both or none of ranks and tolerance are given, either is out of range, the cores do not
        make a train, or have NaN or infinite values.

    References
    ----------
    Oseledets (2011), "Tensor-train decomposition", SIAM J. Sci. Comput. 33(5), Alg. 2.

    Examples
    --------
    >>> train = TensorTrain((torch.ones(1, 3, 4), torch.ones(4, 5, 1)), 0.0)
    >>> tt_round(train, tolerance=0).ranks
    (1,)
    """
    check_cores(train.cores, modes=1)
    cores = _orthogonalize_right([to_working_precision(core) for core in train.cores])
    # With all other right unfoldings orthonormal, the first core has the energy of the whole train.
    energy = float(cores[0].square().sum())
    discarded = 0.0
    for k, limit in enumerate(_truncation_limits(train.shape, ranks, tolerance, energy)):
        # Truncate the left unfolding (r_{k-1}·n_k, r_k) ≈ U R, and multiply R into the next core.
        rank, size, _ = cores[k].shape
        basis, rest, step_energy = _truncate_by_svd(cores[k].flatten(0, 1), limit)
        cores[k] = basis.reshape(rank, size, -1)
        cores[k + 1] = torch.tensordot(rest, cores[k + 1], dims=1)
        discarded += step_energy
    return _make_train(cores, train.cores[0].dtype, discarded, energy)


@dataclass(frozen=True)
class _Limit:
    """The limit of a truncation: a rank, or else the largest energy that it may discard."""

    rank: int | None = None
    energy: float = 0.0

    def choose_rank(self, values: Tensor) -> int:
        """Return the rank for descending singular values."""
        if self.rank is not None:
            return min(self.rank, values.numel())
        # The k-th tail is the energy of the k smallest values.
        tails = values.square().flip(0).cumsum(0)
        return max(1, int((tails > self.energy).sum()))


def _truncation_limits(
    shape: Sequence[int], ranks: Sequence[int] | None, tolerance: float | None, energy: float
) -> list[_Limit]:
    """Return the limits of the d − 1 truncations of a tensor or a train of an energy."""
    if ranks is not None and tolerance is None:
        return [_Limit(rank=rank) for rank in attainable_tt_ranks(shape, ranks)]
    if tolerance is None or ranks is not None:
        raise InvalidArgumentError(
            f"expected either ranks or a tolerance, got ranks={ranks} and tolerance={tolerance}"
        )
    if not 0 <= tolerance < 1:
        raise InvalidArgumentError(
            f"a tolerance is a relative error, at least 0 and below 1, got {tolerance}"
        )
    # δ² = ε²‖A‖² / (d − 1) in each truncation bounds the squared error by ε²‖A‖².
    steps = len(shape) - 1
    return [_Limit(energy=max(tolerance, ROUNDING) ** 2 / steps * energy) for _ in range(steps)]


def _truncate_by_gram(matrix: Tensor, limit: _Limit) -> tuple[Tensor, Tensor, float]:
    """Truncate an unfolding A ≈ U (UᵀA), with singular values from its Gram matrix.

    Returns
    -------
    Tensor, Tensor, float
        The orthonormal basis U of shape (rows, r), the rest UᵀA of shape (r, columns), and the
        discarded energy ‖A − UUᵀA‖².
    """
    full = spectrum(matrix)
    rank = limit.choose_rank(full.values)
    basis = leading_basis(matrix, rank, full)
    rest = basis.mT @ matrix
    discarded = float(full.values[rank:].square().sum())
    total = float(full.values.square().sum())
    if rank < full.values.numel() and discarded < GRAM_TOLERANCE * total:
        # The Gram matrix is too inaccurate for such a small energy, so measure it: ‖A − U (UᵀA)‖².
        discarded = float(torch.addmm(matrix, basis, rest, alpha=-1).square().sum())
    return basis, rest, discarded


def _truncate_by_svd(matrix: Tensor, limit: _Limit) -> tuple[Tensor, Tensor, float]:
    """Truncate like `_truncate_by_gram`, to full precision and at many times the cost."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = limit.choose_rank(values)
    discarded = float(values[rank:].square().sum())
    return left[:, :rank], values[:rank, None] * right[:rank], discarded


def _orthogonalize_right(cores: list[Tensor]) -> list[Tensor]:
    """Make the right unfoldings (r_{k-1}, n_k·r_k) of all cores but the first orthonormal."""
    cores = list(cores)
    for k in range(len(cores) - 1, 0, -1):
        # G_kᵀ = QR: Qᵀ replaces G_k, and Rᵀ goes into the core on the left.
        q, r = torch.linalg.qr(cores[k].flatten(1).mT)
        cores[k] = q.mT.reshape(-1, *cores[k].shape[1:])
        cores[k - 1] = cores[k - 1] @ r.mT
    return cores


def _make_train(
    cores: Iterable[Tensor], dtype: torch.dtype, discarded: float, energy: float
) -> TensorTrain:
    error = sqrt(discarded / energy) if energy else 0.0
    return TensorTrain(tuple(core.to(dtype).contiguous() for core in cores), error)


def _check_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor of at least one mode in working precision."""
    if tensor.ndim == 0:
        raise InvalidArgumentError("a tensor train needs a tensor of at least one mode, got none")
    return to_working_precision(tensor)
