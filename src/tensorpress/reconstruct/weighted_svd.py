"""The SVD of a matrix in the norms of its inputs and of its outputs' gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.calibrate.loss_curvature import LossCurvature
from tensorpress.reconstruct.regression import damped_cholesky

INPUT_DAMPING = 1e-2
"""Damping of the inputs' moment, relative to the mean of its diagonal."""

GRADIENT_DAMPING = 1e-3
"""Damping of the gradients' moment, relative to the mean of its diagonal."""


@dataclass(frozen=True)
class WeightedSVD:
    r"""The SVD :math:`L_B^T W L_A = U Σ V^T`, for :math:`A = L_A L_A^T` and :math:`B = L_B L_B^T`.

    Its truncation gives the matrix W' of a rank that minimizes :math:`\operatorname{tr}(B (W - W')
    A (W - W')^T) = ‖L_B^T (W - W') L_A‖^2`.

    Attributes
    ----------
    matrix : Tensor
        :math:`L_B^T W L_A`, (outputs, inputs), in float64 like all others.
    energies : Tensor
        :math:`σ^2`, the largest first.
    vectors : Tensor
        The columns of U, or of V if these are shorter.
    outputs, inputs : Tensor
        :math:`L_B` and :math:`L_A`.
    """

    matrix: Tensor
    energies: Tensor
    vectors: Tensor
    outputs: Tensor
    inputs: Tensor

    @staticmethod
    def of(weight: Tensor, inputs: Tensor, gradients: Tensor) -> "WeightedSVD":
        """Decompose a matrix.

        Parameters
        ----------
        weight : Tensor
            W, (outputs, inputs).
        inputs : Tensor
            A, (inputs, inputs).
        gradients : Tensor
            B, (outputs, outputs).

        Examples
        --------
        >>> svd = WeightedSVD.of(torch.eye(3), torch.eye(3), torch.diag(torch.tensor([9.0, 1, 4])))
        >>> [round(float(x)) for x in svd.lost()]
        [14, 5, 1, 0]
        >>> first, last = svd.factors(2)
        >>> (last @ first).abs().round().tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
        """
        right = _root(inputs, INPUT_DAMPING)
        left = _root(gradients, GRADIENT_DAMPING)
        matrix = left.mT @ weight.double() @ right  # M = L_Bᵀ W L_A
        wide = matrix.shape[0] <= matrix.shape[1]
        # U: the eigenvectors of M Mᵀ; V: those of Mᵀ M. The smaller Gram matrix is decomposed.
        energies, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
        return WeightedSVD(matrix, energies.clamp_min(0).flip(0), vectors.flip(1), left, right)

    def lost(self) -> Tensor:
        """Return the loss at rank 0, 1, …: the sum of σ² beyond it."""
        return torch.cat([self.energies.flip(0).cumsum(0).flip(0), self.energies.new_zeros(1)])

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return factors (rank, inputs) and (outputs, rank) whose product is the best matrix."""
        basis = self.vectors[:, :rank]
        if len(basis) == len(self.matrix):  # U: Uᵀ M and U
            first, last = basis.mT @ self.matrix, basis
        else:  # V: Vᵀ and M V
            first, last = basis.mT, self.matrix @ basis
        # W' = L_B⁻ᵀ (last first) L_A⁻¹
        return (
            torch.linalg.solve_triangular(self.inputs, first, upper=False, left=False),
            torch.linalg.solve_triangular(self.outputs.mT, last, upper=True),
        )


def decompose_layer(
    curvature: LossCurvature, name: str, weight: Tensor, *, centred: bool
) -> WeightedSVD:
    """Return the SVD of a layer's weight in the norms of its curvature.

    Parameters
    ----------
    curvature : LossCurvature
        The curvature of the model.
    name : str
        Name of the layer.
    weight : Tensor
        Its weight, (outputs, inputs).
    centred : bool
        Whether the layer has a bias, which makes up for the mean of the error.
    """
    inputs = curvature.inputs[name]
    # ½ tr(B D A Dᵀ) is summed over the positions of an example, and so are the gradients' moments.
    gradients = curvature.gradients[name].double() / (2 * curvature.examples)
    return WeightedSVD.of(weight, inputs.mean(centred=centred).to(weight.device), gradients)


def _root(second: Tensor, damping: float) -> Tensor:
    """Return the Cholesky factor of a damped moment."""
    level = damping * second.diagonal().mean().double().clamp_min(1e-30)
    return damped_cholesky(second.double()[None], level[None])[0]
