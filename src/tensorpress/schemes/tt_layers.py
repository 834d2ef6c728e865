"""A Linear and an Embedding as tensor trains that never build their matrix."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.decompose.tt_matrix import tt_rows, tt_to_matrix
from tensorpress.decompose.tt_matvec import tt_macs, tt_multiply
from tensorpress.schemes.canonical_kernel import kernel_to_weight
from tensorpress.schemes.layer_spec import LayerSpec
from tensorpress.schemes.parametrization import RankFactor
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.schemes.tt_weight import train_factors

torch.fx.wrap("tt_multiply")  # torch.fx does not trace into these
torch.fx.wrap("tt_rows")


def contraction_macs(
    row_modes: Sequence[int], column_modes: Sequence[int], ranks: Sequence[int]
) -> tuple[int, bool]:
    """Return the multiply-accumulates of a TT-matrix times a vector, and the end to start at.

    Parameters
    ----------
    row_modes, column_modes, ranks : sequence of int
        Modes and inner ranks of the matrix.

    Returns
    -------
    macs : int
        Multiply-accumulates from the cheaper end.
    from_left : bool
        Whether the left end is the cheaper one.
    """
    left, right = (
        tt_macs(row_modes, column_modes, ranks, from_left=side) for side in (True, False)
    )
    return min(left, right), left <= right


class TTLayer(Pressed):
    """Base of the layers whose weight (rows, columns) is a TT-matrix.

    Parameters
    ----------
    spec : LayerSpec
        The dense layer.
    row_modes, column_modes : sequence of int
        Modes of the weight; the row modes of an Embedding may multiply to more than its rows.
    ranks : sequence of int
        The inner TT-ranks, one fewer than modes.
    scheme : str
        Name of the scheme.
    like : Tensor
        Gives device and dtype.
    """

    def __init__(
        self,
        spec: LayerSpec,
        row_modes: Sequence[int],
        column_modes: Sequence[int],
        ranks: Sequence[int],
        *,
        scheme: str,
        like: Tensor,
    ) -> None:
        super().__init__()
        self.spec, self.scheme, self.ranks = spec, scheme, tuple(ranks)
        self.row_modes, self.column_modes = tuple(row_modes), tuple(column_modes)
        self.cores = nn.ParameterList(
            like.new_empty(before, m, n, after)
            for before, m, n, after in zip(
                (1, *ranks), row_modes, column_modes, (*ranks, 1), strict=True
            )
        )
        self.register_parameter("bias", None)
        if spec.bias:
            self.bias = nn.Parameter(like.new_empty(spec.outputs))

    def dense_weight(self) -> Tensor:
        """Return the weight, without padding rows."""
        matrix = tt_to_matrix(list(self.cores))
        if self.spec.kind == "Embedding":
            return matrix[: self.spec.inputs].contiguous()
        return kernel_to_weight(matrix.unsqueeze(0), self.spec).contiguous()

    def rank_factors(self) -> list[RankFactor]:
        """Return the cores."""
        return train_factors([core.detach() for core in self.cores])

    def put_rank_factors(self, values: Sequence[Tensor]) -> None:
        """Copy in the cores."""
        with torch.no_grad():
            for core, value in zip(self.cores, values, strict=True):
                core.copy_(value.reshape(core.shape))


class TTLinear(TTLayer):
    """A Linear whose weight is a TT-matrix: the input is contracted with one core after another.

    The contraction starts from the cheaper end.

    References
    ----------
    Novikov, Podoprikhin, Osokin, Vetrov (2015), "Tensorizing neural networks", sec. 4.

    Examples
    --------
    >>> import torch
    >>> from tensorpress.schemes.press_layer import press_layer
    >>> pressed = press_layer(nn.Linear(64, 30), "tensor_train", 4)
    >>> pressed.row_modes, pressed.column_modes, pressed(torch.ones(2, 64)).shape
    ((6, 5), (8, 8), torch.Size([2, 30]))
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _, self.from_left = contraction_macs(self.row_modes, self.column_modes, self.ranks)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map (*, inputs) to (*, outputs)."""
        product = tt_multiply(list(self.cores), input, from_left=self.from_left)
        return product if self.bias is None else product + self.bias


class TTEmbedding(TTLayer):
    """An Embedding whose table is a TT-matrix: a look-up multiplies one slice of every core.

    The vector at ``padding_idx`` is always zero.

    References
    ----------
    Hrinchuk, Khrulkov, Mirvakhabova, Orlova, Oseledets (2020), "Tensorized embedding layers".

    Examples
    --------
    >>> import torch
    >>> from tensorpress.schemes.press_layer import press_layer
    >>> pressed = press_layer(nn.Embedding(1000, 32), "tensor_train", 4)
    >>> pressed(torch.tensor([[3, 999]])).shape
    torch.Size([1, 2, 32])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map indices (*) to vectors (*, length); raise an IndexError if one is out of range."""
        indices = input
        if prod(self.row_modes) > self.spec.inputs:
            # Indices of padding rows are out of range: map them to −1.
            indices = indices.masked_fill(indices >= self.spec.inputs, -1)
        vectors = tt_rows(list(self.cores), indices)
        if self.spec.padding_idx is None:
            return vectors
        return vectors.masked_fill((indices == self.spec.padding_idx)[..., None], 0)

    def dense_weight(self) -> Tensor:
        """Return the table, without padding rows."""
        table = super().dense_weight()
        if self.spec.padding_idx is None:
            return table
        padding = torch.tensor([self.spec.padding_idx], device=table.device)
        return table.index_fill(0, padding, 0)
