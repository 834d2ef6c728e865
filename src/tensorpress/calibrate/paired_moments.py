"""Second moments of a layer's inputs in a dense and a pressed model, at the same positions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class PairedMoments:
    r"""Sums over positions of a layer's inputs x in the dense and x̃ in the pressed model.

    Attributes
    ----------
    second : Tensor
        Sum of x̃ x̃ᵀ, (columns, columns), float32.
    cross : Tensor
        Sum of x x̃ᵀ, (columns, columns), float32.
    dense_sum, pressed_sum : Tensor
        Sums of x and of x̃, (columns,), float64.
    rows : int
        The number of positions.

    Examples
    --------
    >>> moments = PairedMoments.zeros(2)
    >>> moments.add(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 1.0]]))
    >>> moments.cross.tolist(), moments.second.tolist()
    ([[2.0, 1.0], [0.0, 0.0]], [[4.0, 2.0], [2.0, 1.0]])
    """

    second: Tensor
    cross: Tensor
    dense_sum: Tensor
    pressed_sum: Tensor
    rows: int = 0

    @staticmethod
    def zeros(columns: int) -> "PairedMoments":
        """Return sums over no positions."""
        square, line = torch.zeros(columns, columns), torch.zeros(columns, dtype=torch.float64)
        return PairedMoments(square, square.clone(), line, line.clone())

    def add(self, dense: Tensor, pressed: Tensor) -> None:
        """Add inputs at the same positions, (rows, columns) each."""
        dense, pressed = dense.float(), pressed.float()
        self.second.addmm_(pressed.mT, pressed)
        self.cross.addmm_(dense.mT, pressed)
        self.dense_sum += dense.sum(0, dtype=torch.float64)
        self.pressed_sum += pressed.sum(0, dtype=torch.float64)
        self.rows += len(dense)

    def means(self, centred: bool) -> tuple[Tensor, Tensor]:
        """Return the means of x̃ x̃ᵀ and of x x̃ᵀ in float64, about the mean inputs if ``centred``."""
        second, cross = (sums.double() / self.rows for sums in (self.second, self.cross))
        if centred:
            mean = self.pressed_sum / self.rows
            second -= mean[:, None] * mean
            cross -= (self.dense_sum / self.rows)[:, None] * mean
        return second, cross
