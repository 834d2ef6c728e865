"""A kernel as a sum: of a kernel on few input channels and one of low rank."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod

import torch
from torch import Tensor, nn

from tensorpress.decompose.svd import truncated_svd
from tensorpress.ranks import round_ranks
from tensorpress.schemes import stages as chains
from tensorpress.schemes.chain_builder import balance_kernels, build_chain, fill_chain
from tensorpress.schemes.channel_pruning import ChannelPruning, PrunedLayer
from tensorpress.schemes.layer_spec import LayerSpec, Sizes, to_canonical
from tensorpress.schemes.rank_grid import COARSE
from tensorpress.schemes.stages import Stage, compose

SWEEPS = 20
"""At most, of the two parts in turn, when a weight is decomposed by itself."""


class LowRankSparseLayer(PrunedLayer):
    """A layer on a choice of input channels, beside a low-rank chain on all of them.

    Parameters
    ----------
    spec : LayerSpec
        The dense layer.
    ranks : tuple of int
        How many input channels the first part has in each group, and the rank of the second.
    scheme : str
        Name of the scheme.
    like : Tensor
        Gives device and dtype.

    Attributes
    ----------
    low_rank : nn.Sequential
        The second part.
    """

    last_places = (0, 2)

    def __init__(self, spec: LayerSpec, ranks: Sizes, *, scheme: str, like: Tensor) -> None:
        super().__init__(spec, ranks, scheme=scheme, like=like)
        self.low_rank = nn.Sequential(
            *build_chain(replace(spec, bias=False), low_rank_stages(spec, ranks[1]), like=like)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map what the dense layer maps."""
        found: Tensor = super().forward(x) + self.low_rank(x)
        return found

    def kernels(self) -> list[Tensor]:
        """Return the kernels: on the channels kept, to the rank, from the rank."""
        weights = (part.get_parameter("weight") for part in self.low_rank)
        low_rank = [to_canonical(weight, self.spec.groups, flipped=False) for weight in weights]
        return [*super().kernels(), *low_rank]

    def put(self, kernels: Sequence[Tensor]) -> None:
        """Copy canonical kernels into the weights."""
        fill_chain([self.few, *self.low_rank], kernels, None)

    def balanced(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """Return kernels that stand for the same, those of the low-rank part scaled to one norm."""
        return [kernels[0], *balance_kernels(kernels[1:])]

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return the sum of both parts."""
        return super().compose(kernels[:1]) + compose(kernels[1:], self.spec.groups)


@dataclass(frozen=True)
class LowRankSparse(ChannelPruning):
    """W ≈ A + B: whole input channels of A are zero, B, unfolded as out × (in·k…), is of rank r.

    Ranks are the channels that A has, and r. What is zero is not there: A is a smaller layer that
    picks its channels from the input. Decomposed by its weight alone, B has the leading singular
    vectors of the channels that are not in A, and A the channels in which B leaves most, in turn.

    References
    ----------
    Yu, Liu, Wang, Tao, "On compressing deep models by low rank and sparse decomposition", CVPR
    2017.
    """

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return all channels, and the largest rank of the unfolding."""
        return spec.in_, min(spec.out, spec.in_ * prod(spec.kernel))

    def candidates(self, spec: LayerSpec, round_to: int = 1) -> list[Sizes]:
        """Return pairs of ranks, cheapest first."""
        sides = (
            round_ranks([ceil(part * most) for part in COARSE], [most] * len(COARSE), round_to)
            for most in self.largest_ranks(spec)
        )
        priced = sorted((self.params(spec, pair), pair) for pair in set(product(*sides)))
        return [pair for params, pair in priced if params < spec.params]

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return bounds from above: B the truncated SVD of all, A the channels it leaves most in.

        One decomposition is enough for all candidates.
        """
        energy = float(kernel.square().sum())
        if not energy:
            return [0.0] * len(candidates)
        _, s, v = torch.linalg.svd(kernel.flatten(2), full_matrices=False)
        parts = (s[..., None] * v).square().unflatten(2, (spec.in_, -1)).sum(3)
        left = parts.sum(1, keepdim=True) - parts.cumsum(1)  # (group, rank - 1, channel)
        left = left.clamp_min(0).sort(dim=2, descending=True).values
        return [float(left[:, rank - 1, channels:].sum()) / energy for channels, rank in candidates]

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of both parts and the bias; the choice of channels is none."""
        rest = replace(spec, bias=False)
        return super().params(spec, ranks) + chains.params(rest, low_rank_stages(spec, ranks[1]))

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates of both parts for one example."""
        low_rank = chains.macs(spec, low_rank_stages(spec, ranks[1]), sizes)
        return super().macs(spec, ranks, sizes) + low_rank

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> LowRankSparseLayer:
        """Return the layer uninitialized, with the first channels."""
        return LowRankSparseLayer(spec, ranks, scheme=self.name, like=like)

    def split(self, kernel: Tensor, *ranks: int) -> tuple[Tensor, list[Tensor]]:
        """Return the channels of A, and the kernels of both parts, of one group's (out, in, …).

        With channels chosen, B has to fit the others only, as A makes up for what it does to them.
        Neither step of the alternation raises the error.
        """
        channels, rank = ranks
        kept = torch.empty(0, dtype=torch.int64, device=kernel.device)
        for _ in range(SWEEPS):
            others = kernel.index_fill(1, kept, 0)
            u = truncated_svd(others.flatten(1), rank).u
            reduced = (u.T @ kernel.flatten(1)).reshape(rank, *kernel.shape[1:])
            rest = kernel - torch.tensordot(u, reduced, 1)
            before, (kept, few) = kept, super().split(rest, channels)
            if torch.equal(kept, before):
                break
        return kept, [*few, reduced, u.reshape(*u.shape, *(1,) * (kernel.ndim - 2))]


def low_rank_stages(spec: LayerSpec, rank: int) -> tuple[Stage, Stage]:
    """Return the chain of the part of low rank: full kernel → 1×1."""
    every = tuple(range(spec.order))
    return Stage(spec.groups, rank, spec.in_, every), Stage(spec.groups, spec.out, rank)
