"""A weight rebuilt from the truncated SVD of its matrix, as a torch parametrization."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from tensorpress.decompose.precision import to_working_precision
from tensorpress.decompose.spectrum import Spectrum, singular_values, spectrum
from tensorpress.decompose.svd import truncated_svd
from tensorpress.schemes.canonical_kernel import kernel_to_weight, weight_to_kernel
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.parametrization import FactorizedWeight, Factors, RankFactor
from tensorpress.schemes.rank_grid import FINE, discarded_energy
from tensorpress.schemes.weight_scheme import WeightScheme


class SVDWeight(FactorizedWeight):
    """Parametrization of a weight, group by group, as a product W = U Vᵀ.

    The kernel of a convolution is unfolded to outputs × (inputs · kernel).

    Parameters
    ----------
    spec : LayerSpec
        The layer or the parameter.
    rank : int
        The rank of the product.

    Examples
    --------
    >>> from tensorpress.schemes.layer_spec import weight_spec
    >>> SVDWeight(weight_spec((40, 30)), 5).factor_shapes
    [(40, 5), (30, 5)]
    """

    spec: LayerSpec

    def __init__(self, spec: LayerSpec, rank: int) -> None:
        super().__init__()
        self.spec, self.shape, self.ranks = spec, spec.weight_shape, (rank,)
        self.scheme = "svd_weight"

    @property
    def factor_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of U (groups, rows, r) and V (groups, columns, r), without groups if one."""
        groups, rows, *columns = self.spec.kernel_shape
        stack = () if groups == 1 else (groups,)
        return [(*stack, rows, *self.ranks), (*stack, prod(columns), *self.ranks)]

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Rebuild the weight from U and V."""
        kernel = (left @ right.mT).reshape(self.spec.kernel_shape)
        return kernel_to_weight(kernel, self.spec).contiguous()

    def decompose(self, weight: Tensor) -> Factors:
        """Truncate the SVD, and split the singular values evenly: (U√S)(V√S)ᵀ."""
        kernel = to_working_precision(weight_to_kernel(weight, self.spec))
        svd = truncated_svd(kernel.flatten(2), *self.ranks)
        self.relative_error = svd.relative_error
        root = svd.s.sqrt()[..., None, :]
        factors = zip((svd.u * root, svd.v * root), self.factor_shapes, strict=True)
        return tuple(factor.reshape(shape).to(weight) for factor, shape in factors)

    def rank_factors(self, factors: Sequence[Tensor]) -> list[RankFactor]:
        """Return both factors, which share the rank."""
        return [RankFactor(factor.unsqueeze(0), {factor.ndim: 0}) for factor in factors]

    def extra_repr(self) -> str:
        """Return the shape and the rank for torch's representation."""
        return f"{self.shape}, rank {self.ranks[0]}"


@dataclass(frozen=True)
class SVDWeightScheme(WeightScheme):
    """Any parameter of any module, rebuilt from the truncated SVD of its matrix or matrices.

    The error equals that of `ChannelSVD`, which computes less on layers that can be replaced: this
    scheme is for weights of other modules.
    """

    parts: ClassVar[tuple[float, ...]] = FINE

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse vectors, and weights whose gradients or padding do not reach the factors."""
        if self.largest_ranks(spec) == (1,):
            return "its weight is a vector: nothing to cut"
        if spec.padding_idx is not None:
            return "its padding vector would not stay zero: use channel_svd"
        if spec.sparse:
            return "its sparse gradients cannot reach the factors of its weight"
        return None

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the shorter side of the matrix."""
        return (min(spec.out, spec.in_ * prod(spec.kernel)),)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectrum of the matrix."""
        return (spectrum(kernel.flatten(2)),)

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return the discarded energies."""
        return discarded_energy(singular_values(kernel.flatten(2)), [r for (r,) in candidates])

    def parametrization(self, spec: LayerSpec, ranks: Sizes) -> SVDWeight:
        """Return the module that rebuilds the weight from its factors."""
        return SVDWeight(spec, *ranks)
