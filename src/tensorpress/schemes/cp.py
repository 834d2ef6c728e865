"""CP: 1×1, one depthwise convolution per spatial mode, 1×1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tensorpress.decompose import CP, cp_als, cp_correct, cp_nls, max_cp_rank
from tensorpress.decompose.spectrum import Spectrum
from tensorpress.schemes.layer_scheme import LayerScheme, join_groups
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.scheme import Factorized
from tensorpress.schemes.stages import Stage, axis_kernel, pointwise_kernel

ERROR_GROWTH = 0.01
"""Share by which "corrected" may raise the error to get less sensitive factors."""

EXACT = 1e-6
"""Relative error below which "corrected" leaves a fit unchanged."""


@dataclass(frozen=True)
class CPLayers(LayerScheme):
    """1×1 to r channels, a depthwise convolution along every spatial mode, 1×1 to all.

    The kernel (in, k₁, …, out) becomes a sum of r rank-one terms.

    Parameters
    ----------
    algorithm : {"als", "nls", "corrected"}
        "als" is alternating least squares. "nls" is non-linear least squares on all factors
        jointly, which takes longer and fits at least as well. "corrected" continues from "nls" to
        the least sensitive factors whose error is at most `ERROR_GROWTH` larger, because best fits
        are full of large terms that cancel, which hinders training.

    References
    ----------
    Phan, Sobolev, Sozykin, Ermilov, Gusak, Tichavský, Glukhov, Oseledets, Cichocki (2020), "Stable
    low-rank tensor decomposition for compression of convolutional neural network".
    Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky (2015), "Speeding-up convolutional neural networks
    using fine-tuned CP-decomposition".
    """

    algorithm: Literal["als", "nls", "corrected"] = "als"

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse layers without spatial modes, whose CP is the SVD."""
        if spec.order == 0:
            return "the CP decomposition of a matrix is its SVD: use channel_svd"
        if self.largest_ranks(spec) == (1,):
            return "its kernel is a vector: nothing to cut"
        return None

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the product of all modes but the largest, which bounds every CP rank."""
        return (max_cp_rank((spec.in_, *spec.kernel, spec.out)),)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return none, because a CP rank is not the rank of a matrix."""
        return ()

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return 1×1 → depthwise along each mode → 1×1."""
        (rank,) = ranks
        return (
            Stage(spec.groups, rank, spec.in_),
            *(Stage(spec.groups * rank, 1, 1, (mode,)) for mode in range(spec.order)),
            Stage(spec.groups, spec.out, rank),
        )

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Fit every group; spread the weights of the terms evenly over the factors."""
        fits = [self._fit(group.movedim(0, -1), ranks[0]) for group in kernel]
        factors, error = join_groups(kernel, [(f.absorb_weights(), f.relative_error) for f in fits])
        first, *spatial, last = factors
        depthwise = [
            axis_kernel(factor.mT.reshape(spec.groups * ranks[0], 1, 1, -1), spec, mode)
            for mode, factor in enumerate(spatial)
        ]
        kernels = [pointwise_kernel(first.mT, spec), *depthwise, pointwise_kernel(last, spec)]
        return Factorized(kernels, error)

    def _fit(self, tensor: Tensor, rank: int) -> CP:
        if self.algorithm == "als":
            return cp_als(tensor, rank)
        cp = cp_nls(tensor, rank)
        if self.algorithm == "nls" or cp.relative_error < EXACT:
            return cp
        return cp_correct(cp, tensor, max_error=(1 + ERROR_GROWTH) * cp.relative_error)
