"""Tensor trains as chains of layers, one layer per TT-core."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tensorpress.decompose import attainable_tt_ranks, largest_tt_ranks, tt_svd
from tensorpress.decompose.spectrum import Spectrum, spectrum
from tensorpress.schemes.layer_scheme import LayerScheme, join_groups
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.scheme import Factorized
from tensorpress.schemes.stages import Stage, axis_kernel, pointwise_kernel


class TTChain(LayerScheme):
    """A chain of layers from the tensor train of each group's kernel.

    The error is the discarded energy of the successive truncations.

    References
    ----------
    Oseledets (2011), "Tensor-train decomposition", Alg. 1.
    """

    @abstractmethod
    def modes(self, spec: LayerSpec) -> Sizes:
        """Return the shape of the tensor to decompose, for one group."""

    @abstractmethod
    def kernels(self, spec: LayerSpec, cores: Sequence[Tensor]) -> list[Tensor]:
        """Return cores (groups, r, n, r') as the kernels of the chain."""

    def tensor(self, spec: LayerSpec, kernel: Tensor) -> Tensor:
        """Return a kernel as tensors (groups, *modes), inputs first."""
        return kernel.movedim(1, -1).reshape(spec.groups, *self.modes(spec))

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the shorter sides of the unfoldings."""
        return largest_tt_ranks(self.modes(spec))

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Lower ranks that the others do not allow."""
        return attainable_tt_ranks(self.modes(spec), ranks)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings."""
        tensor = self.tensor(spec, kernel)
        return tuple(
            spectrum(tensor.flatten(cut).flatten(1, cut - 1)) for cut in range(2, tensor.ndim)
        )

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Decompose every group by TT-SVD."""
        trains = [tt_svd(tensor, ranks=ranks) for tensor in self.tensor(spec, kernel)]
        cores, error = join_groups(kernel, [(t.cores, t.relative_error) for t in trains])
        return Factorized(self.kernels(spec, cores), error)


@dataclass(frozen=True)
class TrainOfConvolutions(TTChain):
    """1×1 to r₁ channels, a convolution along each spatial mode to r₂, r₃, …, 1×1 to all.

    The kernel (in, k₁, …, out) becomes a tensor train; d spatial modes give d + 1 ranks.
    """

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse layers without spatial modes, and kernels that are vectors."""
        if spec.order == 0:
            return "it has no spatial modes"
        if max(self.largest_ranks(spec)) == 1:
            return "its kernel is a vector: nothing to cut"
        return None

    def modes(self, spec: LayerSpec) -> Sizes:
        """Return (in, k₁, …, out)."""
        return (spec.in_, *spec.kernel, spec.out)

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return 1×1 → along each mode → 1×1."""
        return (
            Stage(spec.groups, ranks[0], spec.in_),
            *(Stage(spec.groups, ranks[m + 1], ranks[m], (m,)) for m in range(spec.order)),
            Stage(spec.groups, spec.out, ranks[-1]),
        )

    def kernels(self, spec: LayerSpec, cores: Sequence[Tensor]) -> list[Tensor]:
        """Return the outer cores as 1×1 kernels, the others as kernels along one mode."""
        first, *inner, last = cores
        return [
            pointwise_kernel(first.flatten(1, 2).mT, spec),
            *(axis_kernel(core.permute(0, 3, 1, 2), spec, m) for m, core in enumerate(inner)),
            pointwise_kernel(last.flatten(2).mT, spec),
        ]
