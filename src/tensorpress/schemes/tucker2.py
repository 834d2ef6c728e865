"""Tucker-2: a core between the input and the output mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from tensorpress.decompose.spectrum import Spectrum, leading_basis, singular_values, spectrum
from tensorpress.decompose.svd import truncated_svd
from tensorpress.decompose.tucker import hooi
from tensorpress.schemes.chain_builder import PressedFlattened, PressedLayer
from tensorpress.schemes.layer_scheme import LayerScheme
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.rank_grid import FINE, GRID, discarded_energy
from tensorpress.schemes.scheme import Factorized
from tensorpress.schemes.stages import Stage, pointwise_kernel
from tensorpress.utils.formatting import format_shape


@dataclass(frozen=True)
class Tucker2(LayerScheme):
    """1×1 to r_in channels, a core convolution to r_out, 1×1 to all; for a Linear, A·G·Bᵀ.

    Ranks are (r_in, r_out), the order of Kim et al. (R₃, R₄). HOOI fits the factors, from the bases
    of the two unfoldings. The error is the share of the kernel's energy outside the core.

    Parameters
    ----------
    positions : tuple of int
        Height and width of the feature map, for a Linear after a flatten. The Linear is then
        pressed as a convolution with a kernel of this size, as Kim et al. press the first fully
        connected layer.

    References
    ----------
    Kim, Park, Yoo, Choi, Yang, Shin (2016), "Compression of deep convolutional neural networks for
    fast and low power mobile applications", sec. 3.1.
    """

    positions: Sizes = ()

    parts: ClassVar[tuple[float, ...]] = FINE
    option_names: ClassVar[tuple[str, ...]] = ("positions",)

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse Embeddings, and kernels with one input and one output channel per group."""
        if self.positions and (spec.kind != "Linear" or spec.inputs_first):
            return "positions are for a Linear that follows a flatten"
        if self.positions and (spec.inputs % prod(self.positions) or len(self.positions) > 3):
            return f"its {spec.inputs} inputs do not fit {format_shape(self.positions)} positions"
        if spec.kind == "Embedding":
            return "channel_svd is smaller and as exact"
        if spec.in_ == spec.out == 1:
            return "each group has one input and one output channel: there are no modes to cut"
        return None

    def _unflatten(self, spec: LayerSpec) -> LayerSpec:
        """Return a Linear with `positions` as a convolution, and other layers unchanged."""
        order = len(self.positions)
        if order == 0 or spec.kind != "Linear":
            return spec
        return LayerSpec(
            f"Conv{order}d",
            spec.inputs // prod(self.positions),
            spec.outputs,
            kernel=self.positions,
            stride=(1,) * order,
            padding=(0,) * order,
            dilation=(1,) * order,
            output_padding=(0,) * order,
            bias=spec.bias,
        )

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the shorter sides of the two unfoldings."""
        spec = self._unflatten(spec)
        size = prod(spec.kernel)
        return min(spec.in_, spec.out * size), min(spec.out, spec.in_ * size)

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Limit each rank to the other times the core's spatial size."""
        size = prod(self._unflatten(spec).kernel)
        return min(ranks[0], ranks[1] * size), min(ranks[1], ranks[0] * size)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings along the input and the output mode."""
        spec = self._unflatten(spec)
        kernel = kernel.reshape(spec.kernel_shape)
        if _is_matrix(spec):  # the two unfoldings are transposes
            values = spectrum(kernel.flatten(2).mT)
            return values, values
        return spectrum(kernel.transpose(1, 2).flatten(2)), spectrum(kernel.flatten(2))

    def candidates(self, spec: LayerSpec, round_to: int = 1) -> list[Sizes]:
        """Return pairs of ranks, cheapest first; equal ranks for a matrix."""
        if _is_matrix(self._unflatten(spec)):
            return super().candidates(spec, round_to)
        return self.candidate_pairs(spec, GRID, round_to)

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return the energies that truncations of one HOSVD core leave out.

        They bound the error of HOOI if it starts from the bases of the HOSVD. From another start,
        HOOI seldom ends above, and by little.
        """
        view = self._unflatten(spec)
        kernel = kernel.reshape(view.kernel_shape)
        if _is_matrix(view):
            return discarded_energy(
                singular_values(kernel.flatten(2)), [min(r) for r in candidates]
            )
        energy = _core_energies(kernel, self.spectra(spec, kernel)).cumsum(0).cumsum(1)
        total = float(energy[-1, -1])
        if not total or not candidates:
            return [0.0] * len(candidates)
        r_in, r_out = ([rank - 1 for rank in side] for side in zip(*candidates, strict=True))
        return (1 - energy[r_in, r_out] / total).clamp_min(0).tolist()

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return 1×1 → core → 1×1."""
        spec, (r_in, r_out) = self._unflatten(spec), ranks
        return (
            Stage(spec.groups, r_in, spec.in_),
            Stage(spec.groups, r_out, r_in, tuple(range(spec.order))),
            Stage(spec.groups, spec.out, r_out),
        )

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of the chain, its bias included."""
        return super().params(self._unflatten(spec), ranks)

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates of the chain for one example."""
        if not self.positions:
            return super().macs(spec, ranks, sizes)
        return prod(sizes) * super().macs(self._unflatten(spec), ranks, self.positions)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> PressedLayer:
        """Return the uninitialized chain."""
        if not self.positions:
            return super().skeleton(spec, ranks, like=like)
        view, stages = self._unflatten(spec), self.stages(spec, ranks)
        return PressedFlattened(spec, view, stages, scheme=self.name, ranks=ranks, like=like)

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Fit core and factors by higher-order orthogonal iteration, all groups at once."""
        spec = self._unflatten(spec)
        kernel = kernel.reshape(spec.kernel_shape)
        if _is_matrix(spec):
            return _factorize_matrix(spec, kernel.flatten(2), ranks, spectra)
        tucker = hooi(kernel, ranks, modes=(1, 0), stacked=True, start=spectra or None)
        u_in, u_out = tucker.factors
        kernels = [pointwise_kernel(u_in.mT, spec), tucker.core, pointwise_kernel(u_out, spec)]
        return Factorized(kernels, tucker.relative_error)


def _is_matrix(spec: LayerSpec) -> bool:
    return prod(spec.kernel) == 1


def _factorize_matrix(
    spec: LayerSpec, matrix: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
) -> Factorized:
    """Return the SVD of a matrix (groups, out, in) as A·G·Bᵀ, the result of HOOI."""
    svd = truncated_svd(matrix.mT, ranks[0], spectrum=spectra[0] if spectra else None)
    factors = (svd.u.mT, torch.diag_embed(svd.s), svd.v)
    return Factorized([pointwise_kernel(factor, spec) for factor in factors], svd.relative_error)


def _core_energies(kernel: Tensor, spectra: Sequence[Spectrum]) -> Tensor:
    """Return the energies (r_in, r_out) of the HOSVD's core, one per pair of basis vectors."""
    unfoldings = (kernel.transpose(1, 2).flatten(2), kernel.flatten(2))
    u_in, u_out = (
        leading_basis(unfolding, values.values.shape[-1], values)
        for unfolding, values in zip(unfoldings, spectra, strict=True)
    )
    product = (u_out.mT @ unfoldings[1]).reshape(*u_out.mT.shape[:2], kernel.shape[2], -1)
    core = u_in.mT.unsqueeze(1) @ product  # (groups, r_out, r_in, k)
    energies: Tensor = core.square().sum((0, 3)).mT
    return energies
