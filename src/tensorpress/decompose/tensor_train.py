"""Tensor trains: decomposition by truncated unfoldings, and rounding of a train to lower ranks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from operator import mul

import torch
from torch import Tensor

from tensorpress.decompose.precision import to_working_precision
from tensorpress.decompose.spectrum import Spectrum, leading_basis, spectrum
from tensorpress.decompose.tensor_algebra import check_cores, tt_to_tensor
from tensorpress.decompose.tt_ranks import attainable_tt_ranks, largest_tt_ranks, tt_params
from tensorpress.errors import InvalidArgumentError

__all__ = [
    "TensorTrain",
    "attainable_tt_ranks",
    "largest_tt_ranks",
    "tt_params",
    "tt_round",
    "tt_spectra",
    "tt_svd",
    "tt_to_tensor",
]

GRAM_TOLERANCE = 1e-6
"""Relative errors below this need singular values that a Gram matrix does not resolve."""

ROUNDING = 1e-13
"""Relative error that float64 leaves anyway: directions below it are never kept."""


@dataclass(frozen=True)
class TensorTrain:
    """A tensor train: one TT-core (r_{k-1}, n_k, r_k) a mode, with r_0 = r_d = 1.

    Attributes
    ----------
    cores : tuple of Tensor
        The d TT-cores.
    relative_error : float
        ‖A − Â‖ / ‖A‖ to the tensor, or the train, that was decomposed (0 for a zero tensor).
    """

    cores: tuple[Tensor, ...]
    relative_error: float

    @property
    def ranks(self) -> tuple[int, ...]:
        """The d − 1 inner ranks r_1, …, r_{d-1}."""
        return tuple(core.shape[-1] for core in self.cores[:-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (n_1, …, n_d) of the tensor these cores stand for."""
        return tuple(core.shape[1] for core in self.cores)

    @property
    def num_params(self) -> int:
        """Number of stored values."""
        return sum(core.numel() for core in self.cores)

    def to_tensor(self) -> Tensor:
        """Return the tensor these cores stand for, of shape (n_1, …, n_d)."""
        return tt_to_tensor(self.cores)


def tt_spectra(tensor: Tensor) -> list[Spectrum]:
    """Return the spectra of the d − 1 unfoldings (n_1…n_k, n_{k+1}…n_d) of a tensor.

    The k-th tells what truncating the k-th rank alone would lose: a lower bound of a train's error.

    Raises
    ------
    InvalidArgumentError
        For a tensor without modes or entries, or NaN or infinite values.

    Examples
    --------
    >>> [len(found.values) for found in tt_spectra(torch.ones(2, 3, 4))]
    [2, 4]
    """
    exact = _working_modes(tensor)
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
        Shape (n_1, …, n_d), d ≥ 1, any floating dtype; computed in float64.
    ranks : sequence of int, optional
        The d − 1 inner ranks, each from 1 to its value in `largest_tt_ranks`; those that their
        neighbours do not let a train have are lowered as by `attainable_tt_ranks`.
    tolerance : float, optional
        The relative error allowed, 0 ≤ ε < 1; the ranks follow. Either this or ``ranks``.

    Returns
    -------
    TensorTrain
        In the dtype of ``tensor``. All cores but the last have orthonormal left unfoldings
        (r_{k-1}·n_k, r_k), so the energies discarded by the steps add up to the error exactly.

    Raises
    ------
    InvalidArgumentError
        For both or none of ranks and tolerance, for either out of range, for a tensor without modes
        or entries, or NaN or infinite values.

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
    exact = _working_modes(tensor)
    limit = _Limit.of(shape, ranks, tolerance)
    energy = float(exact.square().sum())
    resolved = tolerance is None or tolerance >= GRAM_TOLERANCE
    truncate = _truncate_by_gram if resolved else _truncate_by_svd
    cores, discarded, rest, rank = [], 0.0, exact, 1
    for k, size in enumerate(shape[:-1]):
        basis, rest, lost = truncate(rest.reshape(rank * size, -1), limit.at(k, energy))
        cores.append(basis.reshape(rank, size, -1))
        rank = basis.shape[1]
        discarded += lost
    cores.append(rest.reshape(rank, shape[-1], 1))
    return _train(cores, tensor.dtype, discarded, energy)


def tt_round(
    train: TensorTrain, *, ranks: Sequence[int] | None = None, tolerance: float | None = None
) -> TensorTrain:
    """Truncate a train to lower ranks without ever building its tensor.

    Parameters
    ----------
    train : TensorTrain
        Of any floating dtype; computed in float64.
    ranks : sequence of int, optional
        The d − 1 inner ranks, as for `tt_svd`; those the train does not reach stay lower.
    tolerance : float, optional
        The relative error allowed, 0 ≤ ε < 1. Either this or ``ranks``.

    Returns
    -------
    TensorTrain
        Its ``relative_error`` is that to the given train.

    Raises
    ------
    InvalidArgumentError
        For both or none of ranks and tolerance, for either out of range, cores that do not make a
        train, or NaN or infinite values.

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
    limit = _Limit.of(train.shape, ranks, tolerance)
    cores = _right_orthogonal([to_working_precision(core) for core in train.cores])
    energy = float(cores[0].square().sum())
    discarded = 0.0
    for k in range(len(cores) - 1):
        rank, size, _ = cores[k].shape
        basis, rest, lost = _truncate_by_svd(cores[k].flatten(0, 1), limit.at(k, energy))
        cores[k] = basis.reshape(rank, size, -1)
        cores[k + 1] = torch.tensordot(rest, cores[k + 1], dims=1)
        discarded += lost
    return _train(cores, train.cores[0].dtype, discarded, energy)


@dataclass(frozen=True)
class _Limit:
    """Where to truncate: at given ranks, or where the energy discarded reaches a bound."""

    ranks: tuple[int, ...] | None
    energy: float
    """The part of the tensor's energy that one step may discard."""

    @classmethod
    def of(
        cls, shape: Sequence[int], ranks: Sequence[int] | None, tolerance: float | None
    ) -> "_Limit":
        if ranks is not None and tolerance is None:
            return cls(attainable_tt_ranks(shape, ranks), 0.0)
        if tolerance is None or ranks is not None:
            raise InvalidArgumentError(
                "exactly one of ranks and tolerance is needed, "
                f"got ranks={ranks} and tolerance={tolerance}"
            )
        if not 0 <= tolerance < 1:
            raise InvalidArgumentError(
                f"a tolerance is a relative error from 0 to below 1, got {tolerance}"
            )
        return cls(None, max(tolerance, ROUNDING) ** 2 / max(len(shape) - 1, 1))

    def at(self, step: int, energy: float) -> Callable[[Tensor], int]:
        """Return the rule of a step: singular values in, rank out."""
        if self.ranks is not None:
            rank = self.ranks[step]
            return lambda values: min(rank, values.numel())
        allowed = self.energy * energy

        def smallest(values: Tensor) -> int:
            tails = values.square().flip(0).cumsum(0)
            return max(1, int((tails > allowed).sum()))

        return smallest


def _truncate_by_gram(
    matrix: Tensor, choose: Callable[[Tensor], int]
) -> tuple[Tensor, Tensor, float]:
    """Return an orthonormal basis (rows, r), the rest (r, columns), and the energy discarded."""
    found = spectrum(matrix)
    rank = choose(found.values)
    basis = leading_basis(matrix, rank, found)
    rest = basis.mT @ matrix
    lost = float(found.values[rank:].square().sum())
    if rank < found.values.numel() and lost < GRAM_TOLERANCE * float(found.values.square().sum()):
        # Too small for the Gram matrix to tell: measured instead.
        lost = float(torch.addmm(matrix, basis, rest, alpha=-1).square().sum())
    return basis, rest, lost


def _truncate_by_svd(
    matrix: Tensor, choose: Callable[[Tensor], int]
) -> tuple[Tensor, Tensor, float]:
    """Do the same as `_truncate_by_gram` to full precision, for many times its cost."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = choose(values)
    lost = float(values[rank:].square().sum())
    return left[:, :rank], values[:rank, None] * right[:rank], lost


def _right_orthogonal(cores: list[Tensor]) -> list[Tensor]:
    """Make the right unfoldings (r_{k-1}, n_k·r_k) of all cores but the first orthonormal."""
    cores = list(cores)
    for k in range(len(cores) - 1, 0, -1):
        q, r = torch.linalg.qr(cores[k].flatten(1).mT)
        cores[k] = q.mT.reshape(-1, *cores[k].shape[1:])
        cores[k - 1] = cores[k - 1] @ r.mT
    return cores


def _train(
    cores: Iterable[Tensor], dtype: torch.dtype, discarded: float, energy: float
) -> TensorTrain:
    error = sqrt(discarded / energy) if energy else 0.0
    return TensorTrain(tuple(core.to(dtype).contiguous() for core in cores), error)


def _working_modes(tensor: Tensor) -> Tensor:
    if tensor.ndim == 0:
        raise InvalidArgumentError("a tensor train needs a tensor of at least one mode, got none")
    return to_working_precision(tensor)
