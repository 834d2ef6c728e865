"""How the kernels of a layer compose, and the best kernels where they have a closed form."""

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
"""Weight of directions without data, relative to the mean second moment: it breaks ties in favour
of the dense weight."""


@dataclass(frozen=True)
class Composition:
    """Composes kernels to one (groups, out, in, *kernel); the map is affine in each kernel.

    Attributes
    ----------
    groups : int
        Groups of the layer.
    parts : callable, optional
        Composes the kernels; a chain by default.
    chosen : callable, optional
        Returns the input channels of the first kernel, (groups, number), if it acts on a choice of
        them. Kernels after it are then the factors of a matrix that is added.
    scale : Tensor, optional
        Multiplies the outputs, (groups, out).

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
        """Return the composed kernel, in the dtype of the kernels."""
        whole = compose(kernels, self.groups) if self.parts is None else self.parts(kernels)
        return whole if self.scale is None else whole * self._factor(whole)

    def closest(
        self, kernels: Sequence[Tensor], target: Tensor, second: SecondMoment
    ) -> list[Tensor] | None:
        r"""Return the best kernels of these shapes if they have a closed form, else None.

        The factors of one matrix, a kernel on chosen channels, and their sum have one. In a sum,
        the kernel on the chosen inputs x corrects everything that x predicts about the other inputs
        y, so the factors are fitted in the norm of the rest, :math:`\Sigma_{yy} - \Sigma_{yx}
        \Sigma_{xx}^{-1} \Sigma_{xy}`.

        Parameters
        ----------
        kernels : sequence of Tensor
            Give the shapes; the kernel on chosen channels is kept in directions without data.
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
        """Return Σ's columns of the chosen channels, and the Cholesky factor of their block."""
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
        r"""Return the factors :math:`U^T W` and U of one matrix.

        U holds the first eigenvectors of :math:`W \Sigma W^T`, the principal components of the
        responses.

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
        """Return whether there are two kernels and the first has all input modes of the target."""
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
