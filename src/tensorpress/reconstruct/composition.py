"""What the kernels of a layer stand for, and which are best where that is known at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tensorpress.schemes.builder import PressedLayer
from tensorpress.schemes.composed import Composed
from tensorpress.schemes.stages import compose

_DAMPING = 1e-9
"""How much directions without data count, relative to the mean second moment: among equals the
largest of the weight are kept."""


@dataclass(frozen=True)
class Composition:
    """Makes of kernels the one that they stand for, (groups, out, in, *kernel): affine in each.

    Attributes
    ----------
    groups : int
        Of the layer.
    parts : callable, optional
        What the kernels stand for; a chain unless given.
    scale : Tensor, optional
        (groups, out): what follows multiplies outputs with it.

    Examples
    --------
    >>> Composition(1)([torch.ones(1, 2, 3), torch.ones(1, 4, 2)])[0, 0]
    tensor([2., 2., 2.])
    """

    groups: int
    parts: Callable[[Sequence[Tensor]], Tensor] | None = None
    scale: Tensor | None = None

    @staticmethod
    def of(layer: Composed) -> "Composition":
        """Return that of a pressed layer."""
        chain = isinstance(layer, PressedLayer)
        return Composition(layer.spec.groups, None if chain else layer.compose)

    def scaled(self, scale: Tensor) -> "Composition":
        """Return the same behind which outputs are multiplied with a scale, (groups, out)."""
        return replace(self, scale=scale)

    def __call__(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return what kernels stand for, in their dtype."""
        whole = compose(kernels, self.groups) if self.parts is None else self.parts(kernels)
        return whole if self.scale is None else whole * self._factor(whole)

    def closest(
        self, kernels: Sequence[Tensor], target: Tensor, second: Tensor
    ) -> list[Tensor] | None:
        r"""Return the best kernels of these shapes, if they are the factors of one matrix.

        With U the first eigenvectors of :math:`W \Sigma W^T` these are :math:`U^T W` and U: the
        principal components of the responses.

        Parameters
        ----------
        kernels : sequence of Tensor
            For their shapes.
        target : Tensor
            W, (groups, out, in, *kernel).
        second : Tensor
            Σ, (groups, n, n).

        References
        ----------
        Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for
        classification and detection": the linear case.
        """
        if not self._is_product(kernels, target):
            return None
        wanted, rank = target.flatten(2), kernels[1].shape[2]
        basis = None
        if wanted.shape[1] > wanted.shape[2]:
            basis, wanted = torch.linalg.qr(wanted)
        mean = second.diagonal(dim1=-2, dim2=-1).mean(-1)
        seen = wanted @ second + (_DAMPING * mean.clamp_min(1e-30))[:, None, None] * wanted
        _, vectors = torch.linalg.eigh(seen @ wanted.mT)
        u = vectors[..., -rank:].flip(-1)
        first = (u.mT @ wanted).reshape(kernels[0].shape)
        last = (u if basis is None else basis @ u).reshape(kernels[1].shape)
        return [first, last if self.scale is None else last / self._factor(last)]

    def _is_product(self, kernels: Sequence[Tensor], target: Tensor) -> bool:
        """Tell whether the first of two kernels has all modes of the target but the outputs."""
        return (
            self.parts is None
            and len(kernels) == 2
            and all(len(kernel) == self.groups for kernel in kernels)
            and kernels[0].shape[2:] == target.shape[2:]
        )

    def _factor(self, kernel: Tensor) -> Tensor:
        assert self.scale is not None
        return self.scale.to(kernel).reshape(*self.scale.shape, *(1,) * (kernel.ndim - 2))
