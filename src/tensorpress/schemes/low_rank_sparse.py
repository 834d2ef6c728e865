"""A kernel as a sum: of a kernel on few input channels and one of low rank."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod

import torch
from torch import Tensor, nn

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.decompose.svd import truncated_svd
from tensorpress.ranks import round_ranks
from tensorpress.schemes import stages as chains
from tensorpress.schemes.base import Scheme
from tensorpress.schemes.builder import balance, chain, dense_layer, fill
from tensorpress.schemes.candidates import COARSE
from tensorpress.schemes.composed import Composed
from tensorpress.schemes.layer import LayerSpec, Sizes, canonical, weight_of
from tensorpress.schemes.stages import Stage, compose, dense_stage

SWEEPS = 20
"""Of the two parts in turn, when a weight is decomposed by itself."""


class LowRankSparseLayer(Composed):
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
    kept : Tensor
        Which input channels the first part has, group by group, int64.
    sparse : nn.Module
        The first part, a stock layer, with the bias.
    low_rank : nn.Sequential
        The second one.
    """

    kept: Tensor
    last_places = (0, 2)

    def __init__(self, spec: LayerSpec, ranks: Sizes, *, scheme: str, like: Tensor) -> None:
        super().__init__()
        self.spec, self.ranks, self.scheme = spec, tuple(ranks), scheme
        self.sparse = dense_layer(_on_few(spec, ranks[0]), like=like)
        self.low_rank = nn.Sequential(
            *chain(replace(spec, bias=False), low_rank_stages(spec, ranks[1]), like=like)
        )
        self.register_buffer("kept", like.new_empty(spec.groups * ranks[0], dtype=torch.int64))
        self.keep(torch.arange(ranks[0], device=like.device).expand(spec.groups, -1))

    def keep(self, channels: Tensor) -> None:
        """Choose the channels of the first part: (groups, number), counted within each group."""
        first = torch.arange(self.spec.groups, device=channels.device)[:, None] * self.spec.in_
        self.kept.copy_((first + channels).flatten())

    def chosen(self) -> Tensor:
        """Return what `keep` was given."""
        return self.kept.reshape(self.spec.groups, -1) % self.spec.in_

    def mistake(self) -> str | None:
        """Return whether a channel is chosen that there is not."""
        first = torch.arange(self.spec.groups, device=self.kept.device)[:, None] * self.spec.in_
        if bool(((self.kept.reshape(self.spec.groups, -1) - first) // self.spec.in_ == 0).all()):
            return None
        return f"chooses channels {self.kept.tolist()}, and it has {self.spec.inputs}"

    def forward(self, x: Tensor) -> Tensor:
        """Map what the dense layer maps."""
        few = x.index_select(-1 - self.spec.order, self.kept)
        found: Tensor = self.sparse(few) + self.low_rank(x)
        return found

    def kernels(self) -> list[Tensor]:
        """Return the kernels: on the channels kept, to the rank, from the rank."""
        weights = (part.get_parameter("weight") for part in (self.sparse, *self.low_rank))
        return [canonical(weight, self.spec.groups, flipped=False) for weight in weights]

    def put(self, kernels: Sequence[Tensor]) -> None:
        """Copy canonical kernels into the weights."""
        fill([self.sparse, *self.low_rank], kernels, None)

    def balanced(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """Return kernels that stand for the same, those of the low-rank part scaled to one norm."""
        return [kernels[0], *balance(kernels[1:])]

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return the sum of both parts."""
        few, *low_rank = kernels
        chosen = self.chosen().to(few.device)
        places = chosen.reshape(*few.shape[:1], 1, -1, *(1,) * self.spec.order).expand_as(few)
        return compose(low_rank, self.spec.groups).scatter_add(2, places, few)

    def held_bias(self) -> nn.Parameter | None:
        """Return the bias, which the first part has."""
        return self.sparse._parameters.get("bias")


@dataclass(frozen=True)
class LowRankSparse(Scheme):
    """W ≈ A + B: whole input channels of A are zero, B, unfolded as out × (in·k…), is of rank r.

    Ranks are the channels that A has, and r. What is zero is not there: A is a smaller layer that
    picks its channels from the input. Decomposed by its weight alone, B is the truncated SVD of
    what A leaves and A has the channels in which B leaves most, in turn.

    References
    ----------
    Yu, Liu, Wang, Tao, "On compressing deep models by low rank and sparse decomposition", CVPR
    2017.
    """

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse what has no input channels to leave out."""
        if spec.kind == "Embedding" or spec.transposed:
            return "only the input channels of a Linear or a convolution can be left out"
        if min(spec.in_, spec.out) == 1:
            return "it has one channel a group: nothing to cut"
        return None

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

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return none: how much one part holds depends on the other."""
        return ()

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of both parts and the bias; the choice of channels is none."""
        rest = replace(spec, bias=False)
        return _on_few(spec, ranks[0]).params + chains.params(rest, low_rank_stages(spec, ranks[1]))

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates of both parts for one example."""
        few = _on_few(spec, ranks[0])
        sparse = chains.macs(few, [dense_stage(few)], sizes)
        return sparse + chains.macs(spec, low_rank_stages(spec, ranks[1]), sizes)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> LowRankSparseLayer:
        """Return the layer uninitialized, with the first channels."""
        return LowRankSparseLayer(spec, ranks, scheme=self.name, like=like)

    def decompose(
        self,
        layer: nn.Module,
        spec: LayerSpec,
        kernel: Tensor,
        ranks: Sizes,
        spectra: Sequence[Spectrum],
    ) -> LowRankSparseLayer:
        """Return the layer fitted to a weight alone."""
        pressed = self.skeleton(spec, ranks, like=layer.get_parameter("weight"))
        parts = [split(group, *ranks) for group in kernel]
        kernels = [torch.stack(own) for own in zip(*(found for _, found in parts), strict=True)]
        pressed.keep(torch.stack([kept for kept, _ in parts]))
        pressed.put(pressed.balanced(kernels))
        own, bias = pressed.held_bias(), layer._parameters.get("bias")
        if own is not None and bias is not None:
            own.data.copy_(bias)
        gap = weight_of(kernel - pressed.compose(kernels), spec)
        norm = float(kernel.norm())
        pressed.relative_error = float(gap.norm()) / norm if norm else 0.0
        return pressed


def low_rank_stages(spec: LayerSpec, rank: int) -> tuple[Stage, Stage]:
    """Return the chain of the part of low rank: full kernel → 1×1."""
    every = tuple(range(spec.order))
    return Stage(spec.groups, rank, spec.in_, every), Stage(spec.groups, spec.out, rank)


def _on_few(spec: LayerSpec, channels: int) -> LayerSpec:
    """Return the same layer on so many input channels a group, as a stock layer."""
    return replace(spec, inputs=spec.groups * channels, inputs_first=False)


def split(kernel: Tensor, channels: int, rank: int) -> tuple[Tensor, list[Tensor]]:
    """Return the channels of A, and the kernels of both parts, of one group's kernel (out, in, …).

    Neither step of the alternation raises the error.

    Examples
    --------
    >>> kept, kernels = split(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 1, 1)
    >>> len(kept), [tuple(kernel.shape) for kernel in kernels]
    (1, [(3, 1), (1, 3), (3, 1)])
    """
    sparse = torch.zeros_like(kernel)
    for _ in range(SWEEPS):
        found = truncated_svd((kernel - sparse).flatten(1), rank)
        rest = kernel - found.to_tensor().reshape(kernel.shape)
        sizes = rest.transpose(0, 1).flatten(1).square().sum(1)
        kept = sizes.topk(channels).indices.sort().values
        sparse = torch.zeros_like(kernel).index_copy(1, kept, rest[:, kept])
    reduced = (found.s[:, None] * found.v.T).reshape(rank, *kernel.shape[1:])
    expanded = found.u.reshape(*found.u.shape, *(1,) * (kernel.ndim - 2))
    return kept, [sparse[:, kept], reduced, expanded]
