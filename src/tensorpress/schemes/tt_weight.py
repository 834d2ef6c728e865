"""A weight rebuilt from a tensor train of its reshape, as a torch parametrization."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, prod
from typing import ClassVar

import torch
from torch import Tensor

from tensorpress.decompose import (
    attainable_tt_ranks,
    largest_tt_ranks,
    tt_params,
    tt_spectra,
    tt_svd,
    tt_to_tensor,
)
from tensorpress.decompose.spectrum import Spectrum
from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks import check_ranks
from tensorpress.schemes.canonical_kernel import kernel_to_weight
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.parametrization import FactorizedWeight, Factors, RankFactor
from tensorpress.schemes.reshape_modes import balanced_modes
from tensorpress.schemes.stages import balance_kernels
from tensorpress.schemes.weight_scheme import WeightScheme
from tensorpress.utils.formatting import format_shape

torch.fx.wrap("tt_to_tensor")  # torch.fx does not trace into it

USUAL_MODE = 4
"""Row and column modes are chosen to be about this large; modes of the train are their products."""


class TTWeight(FactorizedWeight):
    """Parametrization of a weight by the TT-cores of its reshape.

    A weight (m, n, *kernel) is reshaped to (Πkernel, m₁·n₁, …, m_d·n_d), without the first mode if
    it is 1. Its train is G₀[x,y] G₁[(i₁,j₁)] … G_d[(i_d,j_d)].

    Parameters
    ----------
    shape : sequence of int
        Shape of the weight as torch stores it.
    row_modes, column_modes : sequence of int
        Modes of the first two axes, equally many.
    ranks : sequence of int
        The inner TT-ranks.

    Raises
    ------
    InvalidArgumentError
        If the modes or ranks do not fit.

    References
    ----------
    Novikov, Podoprikhin, Osokin, Vetrov (2015), "Tensorizing neural networks"; Garipov,
    Podoprikhin, Novikov, Vetrov (2016), "Ultimate tensorization", sec. 3.

    Examples
    --------
    >>> weight = TTWeight((16, 8, 3, 3), (4, 4), (2, 4), (9, 4))
    >>> weight.modes, weight.num_params
    ((9, 8, 16), 433)
    """

    def __init__(
        self,
        shape: Sequence[int],
        row_modes: Sequence[int],
        column_modes: Sequence[int],
        ranks: Sequence[int],
    ) -> None:
        super().__init__()
        self.shape, self.ranks = tuple(shape), tuple(ranks)
        self.row_modes, self.column_modes = tuple(row_modes), tuple(column_modes)
        reason = mode_mismatch(self.shape, self.row_modes, self.column_modes)
        if reason is not None:
            raise InvalidArgumentError(reason)
        self.modes = paired_modes(self.shape, self.row_modes, self.column_modes)
        check_ranks(self.ranks, largest_tt_ranks(self.modes))
        self.scheme = "tt_weight"
        self.options = {"row_modes": self.row_modes, "column_modes": self.column_modes}

    @property
    def factor_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the cores, (r, n, r')."""
        ends = (1, *self.ranks, 1)
        return list(zip(ends, self.modes, ends[1:], strict=False))

    def forward(self, *cores: Tensor) -> Tensor:
        """Rebuild the weight, of ``shape``, from its TT-cores (r, n, r')."""
        pairs = zip(self.row_modes, self.column_modes, strict=True)
        parts = tt_to_tensor(cores).reshape(-1, *(size for pair in pairs for size in pair))
        order = len(self.row_modes)
        rows, columns = range(1, 2 * order, 2), range(2, 2 * order + 1, 2)
        return parts.permute(*rows, *columns, 0).reshape(self.shape)

    def decompose(self, weight: Tensor) -> Factors:
        """Decompose a dense weight by TT-SVD into cores of equal norm."""
        train = tt_svd(self.reshape(weight), ranks=self.ranks)
        self.relative_error = train.relative_error
        return tuple(balance_kernels(train.cores))

    def rank_factors(self, factors: Sequence[Tensor]) -> list[RankFactor]:
        """Return the cores."""
        return train_factors(factors)

    def reshape(self, weight: Tensor) -> Tensor:
        """Return a dense weight as the tensor to decompose."""
        order = len(self.row_modes)
        split = weight.reshape(*self.row_modes, *self.column_modes, -1)
        pairs = [axis for k in range(order) for axis in (k, order + k)]
        return split.permute(2 * order, *pairs).reshape(self.modes)

    def extra_repr(self) -> str:
        """Return the modes and ranks for torch's representation."""
        rows, columns = format_shape(self.row_modes), format_shape(self.column_modes)
        return f"{rows} by {columns}, TT-ranks {self.ranks}"


def train_factors(cores: Sequence[Tensor]) -> list[RankFactor]:
    """Return the cores (r, …, r') of a train; neighbours share a rank."""
    factors = []
    for number, core in enumerate(cores):
        before = {1: number - 1} if number > 0 else {}
        after = {core.ndim: number} if number < len(cores) - 1 else {}
        factors.append(RankFactor(core.unsqueeze(0), before | after))
    return factors


def paired_modes(shape: Sizes, row_modes: Sizes, column_modes: Sizes) -> Sizes:
    """Return the modes of the tensor that a weight is reshaped into."""
    kernel = prod(shape[2:])
    pairs = tuple(m * n for m, n in zip(row_modes, column_modes, strict=True))
    return pairs if kernel == 1 else (kernel, *pairs)


def mode_mismatch(shape: Sizes, row_modes: Sizes, column_modes: Sizes) -> str | None:
    """Return why modes do not fit a weight, or None if they do."""
    fits = (prod(row_modes), prod(column_modes)) == tuple(shape[:2])
    sound = len(row_modes) == len(column_modes) and min(row_modes + column_modes, default=1) > 0
    if fits and sound:
        return None
    modes = f"{format_shape(row_modes)} and {format_shape(column_modes)}"
    return f"modes {modes} do not fit a weight {format_shape(shape)}"


@dataclass(frozen=True)
class TTWeightScheme(WeightScheme):
    """The weight of any layer rebuilt from a tensor train of its reshape.

    Parameters
    ----------
    row_modes, column_modes : tuple of int, optional
        Modes of the weight's first two axes. By default they are balanced, and their number is
        about the logarithm to base 4 of the larger axis.
    """

    row_modes: Sizes = ()
    column_modes: Sizes = ()
    option_names: ClassVar[tuple[str, ...]] = ("row_modes", "column_modes")

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse modes that do not fit, weights that are vectors, and padding vectors."""
        if spec.padding_idx is not None:
            return "its padding vector would not stay zero: use tensor_train"
        if spec.stacked:
            return "it is a stack of matrices: use svd_weight"
        if spec.sparse:
            return "its sparse gradients cannot reach the factors of its weight"
        reason = mode_mismatch(spec.weight_shape, *self.modes(spec))
        if reason is None and max(self.largest_ranks(spec), default=1) == 1:
            return "its weight, reshaped, is a vector: nothing to cut"
        return reason

    def modes(self, spec: LayerSpec) -> tuple[Sizes, Sizes]:
        """Return the row and column modes."""
        if self.row_modes or self.column_modes:
            return self.row_modes, self.column_modes
        rows, columns = spec.weight_shape[:2]
        order = max(2, round(log(max(rows, columns), USUAL_MODE)))
        return balanced_modes(rows, order), balanced_modes(columns, order)[::-1]

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the shorter sides of the unfoldings."""
        return largest_tt_ranks(paired_modes(spec.weight_shape, *self.modes(spec)))

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Lower ranks that the others do not allow."""
        return attainable_tt_ranks(paired_modes(spec.weight_shape, *self.modes(spec)), ranks)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings."""
        weight = self.parametrization(spec, self.largest_ranks(spec))
        return tuple(tt_spectra(weight.reshape(kernel_to_weight(kernel, spec))))

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the entries of the cores and the bias."""
        modes = paired_modes(spec.weight_shape, *self.modes(spec))
        return tt_params(modes, ranks) + spec.outputs * spec.bias

    def parametrization(self, spec: LayerSpec, ranks: Sizes) -> TTWeight:
        """Return the module that rebuilds the weight from its train."""
        return TTWeight(spec.weight_shape, *self.modes(spec), ranks)
