"""A kernel as the sum of a kernel on few input channels and a low-rank kernel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from tensorpress.decompose.svd import truncated_svd
from tensorpress.schemes import stages as chains
from tensorpress.schemes.canonical_kernel import to_canonical
from tensorpress.schemes.chain_builder import build_chain, fill_chain, plain_weight
from tensorpress.schemes.channel_pruning import ChannelPruning, PrunedLayer
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.rank_grid import COARSE
from tensorpress.schemes.stages import Stage, balance_kernels, compose

SWEEPS = 20
"""Most alternations between the two parts when a weight alone is decomposed."""


class LowRankSparseLayer(PrunedLayer):
    """A layer on a choice of input channels plus a low-rank chain on all channels.

    Parameters
    ----------
    spec : LayerSpec
        The dense layer.
    ranks : tuple of int
        Input channels per group of the first part, and the rank of the second.
    scheme, like
        As for `PrunedLayer`.

    Attributes
    ----------
    low_rank : nn.Sequential
        The low-rank chain.
    """

    last_places = (0, 2)

    def __init__(self, spec: LayerSpec, ranks: Sizes, *, scheme: str, like: Tensor) -> None:
        super().__init__(spec, ranks, scheme=scheme, like=like)
        self.low_rank = nn.Sequential(
            *build_chain(replace(spec, bias=False), low_rank_stages(spec, ranks[1]), like=like)
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map what the dense layer maps."""
        few: Tensor = self.few(self._select_channels(input))
        output: Tensor = few + self.low_rank(input)
        return output

    def kernels(self) -> list[Tensor]:
        """Return the kernel on the chosen channels, and the two of the low-rank chain."""
        weights = map(plain_weight, self.low_rank)
        low_rank = [to_canonical(weight, self.spec.groups, flipped=False) for weight in weights]
        return [*super().kernels(), *low_rank]

    def put(self, kernels: Sequence[Tensor]) -> None:
        """Copy canonical kernels into the weights."""
        fill_chain([self.few, *self.low_rank], kernels)

    def balance(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """Scale the kernels of the low-rank part to one norm."""
        return [kernels[0], *balance_kernels(kernels[1:])]

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return the sum of both parts."""
        return super().compose(kernels[:1]) + compose(kernels[1:], self.spec.groups)


@dataclass(frozen=True)
class LowRankSparse(ChannelPruning):
    """W ≈ A + B: A has few input channels, and B, unfolded as out × (in·k…), has rank r.

    The ranks are the number of channels of A, and r. A is a smaller layer that selects its channels
    from the input. If only a weight is decomposed, two steps alternate: B gets the leading singular
    vectors of the channels outside A, and A the channels with the largest remaining error.

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
        return self.candidate_pairs(spec, COARSE, round_to)

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return upper bounds, all from one decomposition.

        B is the truncated SVD of the whole kernel, and A the channels with the largest error of it.
        """
        energy = float(kernel.square().sum())
        if not energy:
            return [0.0] * len(candidates)
        _, s, v = torch.linalg.svd(kernel.flatten(2), full_matrices=False)
        parts = (s[..., None] * v).square().unflatten(2, (spec.in_, -1)).sum(3)
        rest = parts.sum(1, keepdim=True) - parts.cumsum(1)  # (groups, rank - 1, channel)
        rest = rest.clamp_min(0).sort(dim=2, descending=True).values
        return [float(rest[:, rank - 1, channels:].sum()) / energy for channels, rank in candidates]

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of both parts and the bias; indices are not counted."""
        low_rank = chains.params(replace(spec, bias=False), low_rank_stages(spec, ranks[1]))
        return super().params(spec, ranks) + low_rank

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates of both parts for one example."""
        low_rank = chains.macs(spec, low_rank_stages(spec, ranks[1]), sizes)
        return super().macs(spec, ranks, sizes) + low_rank

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> LowRankSparseLayer:
        """Return the uninitialized layer on the first channels."""
        return LowRankSparseLayer(spec, ranks, scheme=self.name, like=like)

    def split(self, kernel: Tensor, *ranks: int) -> tuple[Tensor, list[Tensor]]:
        """Return the channels of A and the kernels of both parts for one group (out, in, *kernel).

        B has to fit only the channels outside A, because A corrects its own channels. No step of
        the alternation raises the error.
        """
        channels, rank = ranks
        chosen = torch.empty(0, dtype=torch.int64, device=kernel.device)
        for _ in range(SWEEPS):
            # B: the leading directions U of the other channels, with UᵀK as its first kernel.
            u = truncated_svd(kernel.index_fill(1, chosen, 0).flatten(1), rank).u
            projection = (u.T @ kernel.flatten(1)).reshape(rank, *kernel.shape[1:])
            # A: the channels of K − UUᵀK with the most energy.
            rest = kernel - torch.tensordot(u, projection, 1)
            before, (chosen, few) = chosen, super().split(rest, channels)
            if torch.equal(chosen, before):
                break
        return chosen, [*few, projection, u.reshape(*u.shape, *(1,) * (kernel.ndim - 2))]


def low_rank_stages(spec: LayerSpec, rank: int) -> tuple[Stage, Stage]:
    """Return the chain of the low-rank part: full kernel → 1×1."""
    modes = tuple(range(spec.order))
    return Stage(spec.groups, rank, spec.in_, modes), Stage(spec.groups, spec.out, rank)
