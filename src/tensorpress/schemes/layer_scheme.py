"""Base of the schemes that replace a layer by a chain of stock layers."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.schemes import stages as chains
from tensorpress.schemes.chain_builder import PressedLayer, PressedTransposed
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.scheme import Factorized, Scheme
from tensorpress.schemes.stages import Stage


class LayerScheme(Scheme):
    """A scheme that replaces a layer by a chain: `stages` are its shapes, `factorize` its kernels.

    Parameters, multiply-accumulates and the layer itself follow from the stages.
    """

    @abstractmethod
    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return the shapes of the chain."""

    @abstractmethod
    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Return the kernels of the chain, first to last; see `Scheme.factorize`."""

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of the chain, its bias included."""
        return chains.params(spec, self.stages(spec, ranks))

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates of the chain for one example."""
        return chains.macs(spec, self.stages(spec, ranks), sizes)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> PressedLayer:
        """Return the uninitialized chain."""
        stages = self.stages(spec, ranks)
        kind = PressedTransposed if spec.transposed else PressedLayer
        return kind(spec, stages, scheme=self.name, ranks=ranks, like=like)

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return the squared relative errors of the chains' kernels."""
        return [self.factorize(spec, kernel, r, ()).relative_error ** 2 for r in candidates]


def join_groups(
    kernel: Tensor, groups: Sequence[tuple[Sequence[Tensor], float]]
) -> tuple[list[Tensor], float]:
    """Stack the factors of a kernel's groups, and combine their relative errors.

    Parameters
    ----------
    kernel : Tensor
        The canonical kernel, (groups, out, in, *kernel).
    groups : sequence of tuple
        The factors and the relative error of each group's decomposition.

    Returns
    -------
    factors : list of Tensor
        Each factor with the groups as its first axis.
    relative_error : float
        √(Σ_g ε_g² ‖K_g‖² / ‖K‖²).
    """
    norms2 = [float(group.double().square().sum()) for group in kernel]
    discarded = sum(e**2 * norm2 for (_, e), norm2 in zip(groups, norms2, strict=True))
    energy = sum(norms2)
    factors = zip(*(factors for factors, _ in groups), strict=True)
    return list(map(torch.stack, factors)), (discarded / energy) ** 0.5 if energy else 0.0
