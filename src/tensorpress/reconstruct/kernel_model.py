"""What the kernels of a layer stand for, and which are best where that is known at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tensorpress.reconstruct.regression import damped_cholesky
from tensorpress.reconstruct.second_moment import SecondMoment, mean_energy
from tensorpress.schemes.pressed_layer import Composed
from tensorpress.schemes.stages import compose

_DAMPING = 1e-9
"""How much directions without data count, relative to the mean second moment: among equals the
largest of the weight stay."""


@dataclass(frozen=True)
class Composition:
    """Makes of kernels the one that they stand for, (groups, out, in, *kernel): affine in each.

    Attributes
    ----------
    groups : int
        Of the layer.
    parts : callable, optional
        What the kernels stand for; a chain by default.
    chosen : callable, optional
        If the first kernel is on few input channels: gives these, (groups, number). Kernels after
        it are the factors of a matrix that is added.
    scale : Tensor, optional
        (groups, out): what follows multiplies outputs with it.

    Examples
    --------
    >>> Composition(1)([torch.ones(1, 2, 3), torch.ones(1, 4, 2)])[0, 0]
    tensor([2., 2., 2.])
    """

    groups: int
    parts: Callable[[Sequence[Tensor]], Tensor] | None = None
    chosen: Callable[[], Tensor] | None = None
    scale: Tensor | None = None

    @staticmethod
    def of(layer: Composed) -> "Composition":
        """Return the composition of a pressed layer."""
        groups = layer.spec.groups
        if layer.chained:
            return Composition(groups)
        chosen = None if layer.selection() is None else partial(_selection, layer)
        return Composition(groups, layer.compose, chosen)

    def scaled(self, scale: Tensor) -> "Composition":
        """Return this composition with outputs multiplied by a scale, (groups, out)."""
        return replace(self, scale=scale)

    def __call__(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return what kernels stand for, in their dtype."""
        whole = compose(kernels, self.groups) if self.parts is None else self.parts(kernels)
        return whole if self.scale is None else whole * self._factor(whole)

    def closest(
        self, kernels: Sequence[Tensor], target: Tensor, second: SecondMoment
    ) -> list[Tensor] | None:
        r"""Return the best kernels of these shapes, where they are known at once.

        Those are the factors of one matrix, a kernel on chosen channels, and their sum: what the
        chosen inputs x predict of the others y costs nothing, as the kernel on them makes up for
        it, so that the factors are those in the norm of :math:`\Sigma_{yy} - \Sigma_{yx}
        \Sigma_{xx}^{-1} \Sigma_{xy}`.

        Parameters
        ----------
        kernels : sequence of Tensor
            For their shapes; the one on chosen channels stays in directions without data.
        target : Tensor
            W, (groups, out, in, *kernel).
        second : SecondMoment
            Σ, (groups, n, n); a Tensor where channels are chosen.
        """
        if self.chosen is None:
            known = self.parts is None and self._is_product(kernels, target)
            return self._product(kernels, target, second) if known else None
        assert isinstance(second, Tensor)
        first, *product = kernels
        seen, factor = self._on_chosen(first, second)
        if product:  # Σyy - Σyx Σxx⁻¹ Σxy
            unpredicted = second - seen @ torch.cholesky_solve(seen.mT, factor)
            product = self._product(product, target, unpredicted)
        # The kernel on x: A + (W - A - B) Σ·x Σxx⁻¹.
        slope = (target - self([first, *product])).flatten(2) @ seen
        step = torch.cholesky_solve(slope.mT, factor).mT.reshape(first.shape)
        return [first + (step if self.scale is None else step / self._factor(step)), *product]

    def _on_chosen(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns of Σ of the chosen channels, and the factor of its block of them."""
        assert self.chosen is not None
        width = first[0, 0, 0].numel()
        places = torch.arange(width, device=first.device)
        columns = (self.chosen()[..., None].to(first.device) * width + places).flatten(1)
        seen = second.take_along_dim(columns[:, None], 2)
        block = seen.take_along_dim(columns[..., None], 1)
        mean = mean_energy(second)
        return seen, damped_cholesky(block, _DAMPING * mean.clamp_min(1e-30))

    def _product(
        self, kernels: Sequence[Tensor], target: Tensor, second: SecondMoment
    ) -> list[Tensor]:
        r"""Return the factors of one matrix.

        With U the first eigenvectors of :math:`W \Sigma W^T` these are :math:`U^T W` and U: the
        principal components of the responses.

        References
        ----------
        Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for
        classification and detection": the linear case.
        """
        matrix, rank = target.flatten(2), kernels[1].shape[2]
        basis = None
        if matrix.shape[1] > matrix.shape[2]:  # W = Q R: the eigenvectors of R Σ Rᵀ are fewer
            basis, matrix = torch.linalg.qr(matrix)
        mean = mean_energy(second)
        seen = matrix @ second + (_DAMPING * mean.clamp_min(1e-30))[:, None, None] * matrix
        _, vectors = torch.linalg.eigh(seen @ matrix.mT)  # W Σ Wᵀ
        u = vectors[..., -rank:].flip(-1)
        first = (u.mT @ matrix).reshape(kernels[0].shape)
        last = (u if basis is None else basis @ u).reshape(kernels[1].shape)
        return [first, last if self.scale is None else last / self._factor(last)]

    def _is_product(self, kernels: Sequence[Tensor], target: Tensor) -> bool:
        """Tell whether the first of two kernels has all modes of the target but the outputs."""
        return (
            len(kernels) == 2
            and all(len(kernel) == self.groups for kernel in kernels)
            and kernels[0].shape[2:] == target.shape[2:]
        )

    def _factor(self, kernel: Tensor) -> Tensor:
        assert self.scale is not None
        return self.scale.to(kernel).reshape(*self.scale.shape, *(1,) * (kernel.ndim - 2))


def _selection(layer: Composed) -> Tensor:
    channels = layer.selection()
    assert channels is not None
    return channels
