"""SVD of a matrix with the identity in some rows of one factor, which takes no storage."""

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
    """A layer of low rank: one Linear computes some outputs, another the rest from these.

    Parameters
    ----------
    spec : LayerSpec
        The dense layer.
    ranks : tuple of int
        The number r of outputs that are computed from the inputs.
    scheme : str
        Name of the scheme.
    like : Tensor
        Gives device and dtype.

    Attributes
    ----------
    pivots : nn.Linear
        Linear from the inputs to r outputs.
    others : nn.Linear
        Linear from these to the other outputs.
    outputs : OrderedOutputs
        Orders all outputs, and adds the bias.
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
        """Return an error message if the order of outputs is not a permutation, else None."""
        order = self.outputs.order
        if torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
            return None
        return f"orders its {len(order)} outputs as {order.tolist()}, which is not a permutation"

    def kernels(self) -> list[Tensor]:
        """Return the two kernels of the equivalent chain of Linears."""
        others = plain_weight(self.others)
        identity = torch.eye(*self.ranks, dtype=others.dtype, device=others.device)
        last = torch.cat([identity, others])[self.outputs.order]
        return [plain_weight(self.pivots)[None], last[None]]

    @torch.no_grad()
    def put(self, kernels: Sequence[Tensor]) -> None:
        r"""Copy in the product B A of a chain of kernels A, then B.

        With B = Q R, LU with pivoting chooses r well-conditioned rows :math:`Q_p` of Q. The pivots
        are :math:`W_p = Q_p R A`, and the other outputs :math:`W_o = (Q_o Q_p^{-1}) W_p`.
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
        """Return the kernels unchanged, because the stored values do not depend on their scales."""
        return list(kernels)

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return the product of the kernels of a chain."""
        return compose(kernels, self.spec.groups)

    def rank_factors(self) -> list[RankFactor]:
        """Return the kernels of the chain, which share one rank."""
        ranks: tuple[dict[int, int], ...] = ({1: 0}, {2: 0})
        kernels = (kernel.detach() for kernel in self.kernels())
        return [RankFactor(*pair) for pair in zip(kernels, ranks, strict=True)]


class OrderedOutputs(nn.Module):
    """Puts outputs into an order, and adds the bias if there is one.

    Attributes
    ----------
    order : Tensor
        The place of each output in the input, int64.
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

    In a product B A of rank r, an invertible matrix can be moved between the factors. It is chosen
    so that r rows of B are the identity, which needs no storage: r (m + n − r) parameters remain
    instead of r (m + n), fewer than m n at every rank.

    References
    ----------
    Zhao, Zhang, Cannistraci (2025), "Pivoting factorization: a compact meta low-rank representation
    of sparsity for efficient inference in large language models", whose rows are chosen by QR.
    """

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse layers other than a Linear, whose outputs can be reordered."""
        if spec.kind != "Linear":
            return "only a Linear can be pressed by it"
        return super().refusal(spec)

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return inputs → pivots → other outputs."""
        return pivoted_stages(spec, ranks[0])

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> PivotedLayer:  # type: ignore[override]
        """Return the uninitialized layer, with its first outputs as pivots."""
        return PivotedLayer(spec, ranks, scheme=self.name, like=like)


def pivoted_stages(spec: LayerSpec, rank: int) -> tuple[Stage, Stage]:
    """Return the shapes of the stored kernels: inputs → pivots → other outputs."""
    return Stage(1, rank, spec.in_), Stage(1, spec.out - rank, rank)


def _swapped(count: int, swaps: Tensor) -> Tensor:
    """Return the row order that the pivots of an LU decomposition, counted from 1, describe."""
    rows = list(range(count))
    for place, other in enumerate(swaps.tolist()):
        rows[place], rows[other - 1] = rows[other - 1], rows[place]
    return torch.tensor(rows, device=swaps.device)
