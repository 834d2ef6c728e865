"""SVD of a matrix whose second factor has the identity in some of its rows, which is not stored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from tensorpress.schemes.chain_builder import build_chain, plain_weight
from tensorpress.schemes.channel_svd import ChannelSVD
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.parametrization import RankFactor
from tensorpress.schemes.pressed_layer import Composed
from tensorpress.schemes.stages import Stage, compose


class PivotedLayer(Composed):
    """A layer of low rank: some outputs by a Linear, the others by a Linear on these.

    Parameters
    ----------
    spec : LayerSpec
        The dense layer.
    ranks : tuple of int
        How many outputs are computed from the inputs.
    scheme : str
        Name of the scheme.
    like : Tensor
        Gives device and dtype.

    Attributes
    ----------
    pivots : nn.Linear
        Linear from the inputs to r of the outputs.
    others : nn.Linear
        Linear from these to all other outputs.
    outputs : OrderedOutputs
        Puts both in the order of the outputs, and adds the bias.
    """

    chained: ClassVar[bool] = True
    last_places: Sizes = (1,)

    def __init__(self, spec: LayerSpec, ranks: Sizes, *, scheme: str, like: Tensor) -> None:
        super().__init__()
        self.spec, self.ranks, self.scheme = spec, tuple(ranks), scheme
        chain = build_chain(replace(spec, bias=False), pivoted_stages(spec, ranks[0]), like=like)
        self.pivots, self.others = chain
        self.outputs = OrderedOutputs(spec, like=like)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map (*, inputs) to (*, outputs)."""
        pivots = self.pivots(input)
        output: Tensor = self.outputs(torch.cat([pivots, self.others(pivots)], -1))
        return output

    def bias_module(self) -> nn.Module:
        """Return the module that adds the bias."""
        return self.outputs

    def mistake(self) -> str | None:
        """Return that some output is computed twice or never, None where the order is one."""
        order = self.outputs.order
        if torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
            return None
        return f"orders its {len(order)} outputs as {order.tolist()}, which is no permutation"

    def kernels(self) -> list[Tensor]:
        """Return the kernels of a chain that computes the same: to the rank, and from it."""
        others = plain_weight(self.others)
        identity = torch.eye(*self.ranks, dtype=others.dtype, device=others.device)
        last = torch.cat([identity, others])[self.outputs.order]
        return [plain_weight(self.pivots)[None], last[None]]

    @torch.no_grad()
    def put(self, kernels: Sequence[Tensor]) -> None:
        r"""Copy in what a chain A, then B, stands for.

        Of an orthonormal basis Q of the columns of B, LU with pivoting chooses r rows :math:`Q_p`
        that are far from dependent. The layer then is :math:`W_p = Q_p R A` with B = Q R, and
        :math:`W_o = (Q_o Q_p^{-1}) W_p`.
        """
        first, last = (kernel[0].double() for kernel in kernels)
        rank = len(first)
        basis, triangle = torch.linalg.qr(last)
        _, swaps = torch.linalg.lu_factor(basis)
        rows = _swapped(len(last), swaps)
        pivots, others = basis[rows[:rank]], basis[rows[rank:]]
        plain_weight(self.pivots).copy_(pivots @ triangle @ first)
        plain_weight(self.others).copy_(torch.linalg.solve(pivots, others, left=False))
        self.outputs.order.copy_(rows.argsort())

    def balance(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """Return the kernels as they are: what is stored does not depend on their scales."""
        return list(kernels)

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return the kernel that a chain of kernels stands for."""
        return compose(kernels, self.spec.groups)

    def rank_factors(self) -> list[RankFactor]:
        """Return the kernels of the chain, with one rank between them."""
        ranks: tuple[dict[int, int], ...] = ({1: 0}, {2: 0})
        kernels = (kernel.detach() for kernel in self.kernels())
        return [RankFactor(*pair) for pair in zip(kernels, ranks, strict=True)]


class OrderedOutputs(nn.Module):
    """Puts outputs into an order, and adds a bias where the layer has one.

    Attributes
    ----------
    order : Tensor
        Where each output is in the input, int64.
    bias : nn.Parameter or None
        The bias of the dense layer.
    """

    order: Tensor
    bias: nn.Parameter | None

    def __init__(self, spec: LayerSpec, *, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(spec.outputs, device=like.device))
        bias = nn.Parameter(like.new_empty(spec.outputs)) if spec.bias else None
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map (*, outputs) to (*, outputs)."""
        output, bias = input.index_select(-1, self.order), self.bias
        return output if bias is None else output + bias


@dataclass(frozen=True)
class PivotedSVD(ChannelSVD):
    """The SVD of a Linear in the fewest numbers: r rows of W, and the others as sums of these.

    A matrix of rank r is B A up to any invertible matrix between both. It is chosen so that r rows
    of B are the identity, which takes no parameters: r (m + n − r) are left of r (m + n), fewer
    than m n at every rank.

    References
    ----------
    Zhao, Zhang, Cannistraci (2025), "Pivoting factorization: a compact meta low-rank representation
    of sparsity for efficient inference in large language models", whose rows are chosen by QR.
    """

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse all but a Linear, whose outputs are put into another order at the end."""
        if spec.kind != "Linear":
            return "only the outputs of a Linear are computed from others"
        return super().refusal(spec)

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return the pivots from the inputs, and all other outputs from the pivots."""
        return pivoted_stages(spec, ranks[0])

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> PivotedLayer:  # type: ignore[override]
        """Return the layer uninitialized, its first outputs being the pivots."""
        return PivotedLayer(spec, ranks, scheme=self.name, like=like)


def pivoted_stages(spec: LayerSpec, rank: int) -> tuple[Stage, Stage]:
    """Return the chain without the identity: inputs → pivots → other outputs."""
    return Stage(1, rank, spec.in_), Stage(1, spec.out - rank, rank)


def _swapped(count: int, swaps: Tensor) -> Tensor:
    """Return the order that the row swaps of LU, from 1, leave of consecutive numbers."""
    rows = list(range(count))
    for place, other in enumerate(swaps.tolist()):
        rows[place], rows[other - 1] = rows[other - 1], rows[place]
    return torch.tensor(rows, device=swaps.device)
