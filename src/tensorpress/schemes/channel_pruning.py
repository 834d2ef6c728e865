"""A kernel on a choice of its input channels; the others are not there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.schemes import stages as chains
from tensorpress.schemes.base import Scheme
from tensorpress.schemes.chain_builder import dense_layer, fill_chain
from tensorpress.schemes.layer_spec import LayerSpec, Sizes, kernel_to_weight, to_canonical
from tensorpress.schemes.parametrization import RankFactor
from tensorpress.schemes.pressed_layer import Composed
from tensorpress.schemes.rank_grid import FINE
from tensorpress.schemes.stages import dense_stage


class PrunedLayer(Composed):
    """A layer on a choice of input channels, which it picks by an index.

    Parameters
    ----------
    spec : LayerSpec
        The dense layer.
    ranks : tuple of int
        First how many input channels are kept in each group.
    scheme : str
        Name of the scheme.
    like : Tensor
        Gives device and dtype.

    Attributes
    ----------
    kept : Tensor
        The channels kept, group by group, int64.
    few : nn.Module
        A stock layer on these channels, with the bias.
    """

    kept: Tensor
    last_places: Sizes = (0,)

    def __init__(self, spec: LayerSpec, ranks: Sizes, *, scheme: str, like: Tensor) -> None:
        super().__init__()
        self.spec, self.ranks, self.scheme = spec, tuple(ranks), scheme
        self.few = dense_layer(narrow_spec(spec, ranks[0]), like=like)
        self.register_buffer("kept", like.new_empty(spec.groups * ranks[0], dtype=torch.int64))
        self.select(torch.arange(ranks[0], device=like.device).expand(spec.groups, -1))

    def select(self, channels: Tensor) -> None:
        """Choose the channels: (groups, number), counted within each group."""
        first = torch.arange(self.spec.groups, device=channels.device)[:, None] * self.spec.in_
        self.kept.copy_((first + channels).flatten())

    def selection(self) -> Tensor:
        """Return what `select` was given."""
        return self.kept.reshape(self.spec.groups, -1) % self.spec.in_

    def mistake(self) -> str | None:
        """Return whether a channel is chosen that there is not."""
        first = torch.arange(self.spec.groups, device=self.kept.device)[:, None] * self.spec.in_
        if bool(((self.kept.reshape(self.spec.groups, -1) - first) // self.spec.in_ == 0).all()):
            return None
        return f"chooses channels {self.kept.tolist()}, and it has {self.spec.inputs}"

    def forward(self, x: Tensor) -> Tensor:
        """Map what the dense layer maps."""
        found: Tensor = self.few(self._picked(x))
        return found

    def _picked(self, x: Tensor) -> Tensor:
        """Return the channels kept, in channels_last where x is: a plain choice copies all of x."""
        place = -1 - self.spec.order
        last = x.movedim(place, -1)
        if last.is_contiguous():
            return last.index_select(-1, self.kept).movedim(-1, place)
        return x.index_select(place, self.kept)

    def kernels(self) -> list[Tensor]:
        """Return the kernel on the channels kept."""
        return [to_canonical(self.few.get_parameter("weight"), self.spec.groups, flipped=False)]

    def put(self, kernels: Sequence[Tensor]) -> None:
        """Copy the kernel into the weight."""
        fill_chain([self.few], kernels, None)

    def balanced(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """Return the kernel as it is."""
        return list(kernels)

    def rank_factors(self) -> list[RankFactor]:
        """Return the kernels, whose channels are a rank as well, and after them their choice."""
        ranks = ({2: 0}, {1: 1}, {2: 1})
        kernels = (kernel.detach() for kernel in self.kernels())
        choice = self.selection() + 1  # zero is what stands for nothing
        return [*map(RankFactor, kernels, ranks), RankFactor(choice, {1: 0})]

    def put_rank_factors(self, values: Sequence[Tensor]) -> None:
        """Copy in the kernels, and the choice of channels."""
        *kernels, choice = values
        super().put_rank_factors(kernels)
        self.select((choice - 1).clamp_min(0))

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return the kernel with zeros for the other channels."""
        few, spec = kernels[0], self.spec
        chosen = self.selection().to(few.device)
        places = chosen.reshape(*few.shape[:1], 1, -1, *(1,) * spec.order).expand_as(few)
        whole = few.new_zeros(spec.groups, spec.out, spec.in_, *spec.kernel)
        return whole.scatter(2, places, few)

    def held_bias(self) -> nn.Parameter | None:
        """Return the bias."""
        return self.few._parameters.get("bias")


@dataclass(frozen=True)
class ChannelPruning(Scheme):
    """Whole input channels are left out, those whose weights have the least energy.

    The rank is the number of channels kept in each group. What is left out is not there: a smaller
    layer picks its channels from the input.

    References
    ----------
    He, Zhang, Sun, "Channel pruning for accelerating very deep neural networks", ICCV 2017.
    """

    parts: ClassVar[tuple[float, ...]] = FINE

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse what has no input channels to leave out."""
        if spec.kind == "Embedding" or spec.transposed:
            return "only the input channels of a Linear or a convolution can be left out"
        if min(spec.in_, spec.out) == 1:
            return "it has one channel a group: nothing to cut"
        return None

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return all channels."""
        return (spec.in_,)

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return the energies of the channels left out."""
        energy = float(kernel.square().sum())
        if not energy:
            return [0.0] * len(candidates)
        ascending = _energies(kernel).sort(dim=1).values
        return [
            float(ascending[:, : spec.in_ - channels].sum()) / energy for channels, *_ in candidates
        ]

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return none: the number of channels is the rank of no matrix."""
        return ()

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of the layer and its bias; the choice of channels is none."""
        return narrow_spec(spec, ranks[0]).params

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates for one example."""
        few = narrow_spec(spec, ranks[0])
        return chains.macs(few, [dense_stage(few)], sizes)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> PrunedLayer:
        """Return the layer uninitialized, with the first channels."""
        return PrunedLayer(spec, ranks, scheme=self.name, like=like)

    def decompose(
        self,
        layer: nn.Module,
        spec: LayerSpec,
        kernel: Tensor,
        ranks: Sizes,
        spectra: Sequence[Spectrum],
    ) -> PrunedLayer:
        """Return the layer by a weight alone."""
        pressed = self.skeleton(spec, ranks, like=layer.get_parameter("weight"))
        parts = [self.split(group, *ranks) for group in kernel]
        kernels = [torch.stack(own) for own in zip(*(found for _, found in parts), strict=True)]
        pressed.select(torch.stack([kept for kept, _ in parts]))
        pressed.put(pressed.balanced(kernels))
        own, bias = pressed.held_bias(), layer._parameters.get("bias")
        if own is not None and bias is not None:
            own.data.copy_(bias)
        gap = kernel_to_weight(kernel - pressed.compose(kernels), spec)
        norm = float(kernel.norm())
        pressed.relative_error = float(gap.norm()) / norm if norm else 0.0
        return pressed

    def split(self, kernel: Tensor, *ranks: int) -> tuple[Tensor, list[Tensor]]:
        """Return the channels to keep, ascending, and the kernels of one group's (out, in, …).

        Examples
        --------
        >>> pruning = ChannelPruning("channel_pruning", "")
        >>> kept, kernels = pruning.split(torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), 2)
        >>> kept.tolist(), kernels[0].tolist()
        ([0, 2], [[3.0, 2.0], [0.0, 2.0]])
        """
        kept = _energies(kernel[None])[0].topk(ranks[0]).indices.sort().values
        return kept, [kernel[:, kept]]


def narrow_spec(spec: LayerSpec, channels: int) -> LayerSpec:
    """Return the same layer on so many input channels a group, as a stock layer."""
    return replace(spec, inputs=spec.groups * channels, inputs_first=False)


def _energies(kernel: Tensor) -> Tensor:
    """Return the energy of every input channel, (groups, in)."""
    return kernel.square().transpose(1, 2).flatten(2).sum(2)
