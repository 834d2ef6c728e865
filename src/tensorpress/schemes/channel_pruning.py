"""Channel pruning: a smaller layer on a choice of the input channels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.schemes.canonical_kernel import to_canonical
from tensorpress.schemes.chain_builder import dense_layer, fill_chain, plain_weight
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.parametrization import RankFactor
from tensorpress.schemes.pressed_layer import Composed, Pressed
from tensorpress.schemes.rank_grid import FINE
from tensorpress.schemes.scheme import Factorized, Scheme
from tensorpress.schemes.stages import dense_macs

torch.fx.wrap("select_channels")  # torch.fx does not look into it


class PrunedLayer(Composed):
    """A layer on a choice of input channels, selected by their indices.

    Parameters
    ----------
    spec : LayerSpec
        The dense layer.
    ranks : tuple of int
        The number of input channels per group comes first.
    scheme : str
        Name of the scheme.
    like : Tensor
        Gives device and dtype.

    Attributes
    ----------
    kept : Tensor
        Indices of the chosen channels, group by group, int64.
    few : nn.Module
        Stock layer on the chosen channels, with the bias.
    """

    kept: Tensor
    last_places: Sizes = (0,)

    def __init__(self, spec: LayerSpec, ranks: Sizes, *, scheme: str, like: Tensor) -> None:
        super().__init__()
        self.spec, self.ranks, self.scheme = spec, tuple(ranks), scheme
        self.axis = -1 - spec.order
        self.few = dense_layer(narrow_spec(spec, ranks[0]), like=like)
        self.register_buffer("kept", like.new_empty(spec.groups * ranks[0], dtype=torch.int64))
        self.select(torch.arange(ranks[0], device=like.device).expand(spec.groups, -1))

    def _first_channels(self) -> Tensor:
        """Return the index of the first channel of every group, (groups, 1)."""
        return torch.arange(self.spec.groups, device=self.kept.device)[:, None] * self.spec.in_

    def select(self, channels: Tensor) -> None:
        """Choose channels (groups, number), counted from 0 within each group."""
        self.kept.copy_((self._first_channels() + channels.to(self.kept.device)).flatten())

    def selection(self) -> Tensor:
        """Return the channels (groups, number), counted from 0 within each group."""
        return self.kept.reshape(self.spec.groups, -1) % self.spec.in_

    def mistake(self) -> str | None:
        """Return an error message if a chosen channel does not exist, else None."""
        channels = self.kept.reshape(self.spec.groups, -1) - self._first_channels()
        if bool((channels // self.spec.in_ == 0).all()):
            return None
        return f"chooses channels {self.kept.tolist()}, but has only {self.spec.inputs}"

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map inputs to outputs of the dense layer's shapes."""
        output: Tensor = self.few(self._select_channels(input))
        return output

    def _select_channels(self, x: Tensor) -> Tensor:
        return select_channels(x, self.axis, self.kept)

    def kernels(self) -> list[Tensor]:
        """Return the kernel on the chosen channels."""
        return [to_canonical(plain_weight(self.few), self.spec.groups, flipped=False)]

    def put(self, kernels: Sequence[Tensor]) -> None:
        """Copy the kernel into the weight."""
        fill_chain([self.few], kernels)

    def balance(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """Return the kernel as it is."""
        return list(kernels)

    def rank_factors(self) -> list[RankFactor]:
        """Return the kernels, and the choice of channels, whose number is a rank as well."""
        ranks = ({2: 0}, {1: 1}, {2: 1})
        kernels = (kernel.detach() for kernel in self.kernels())
        channels = self.selection() + 1  # from 1, because zero slices are dropped
        return [*map(RankFactor, kernels, ranks), RankFactor(channels, {1: 0})]

    def put_rank_factors(self, values: Sequence[Tensor]) -> None:
        """Copy in the kernels, and the channels counted from 1."""
        *kernels, channels = values
        super().put_rank_factors(kernels)
        self.select((channels - 1).clamp_min(0))

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return the kernel with zeros for the other channels."""
        few, spec = kernels[0], self.spec
        channels = self.selection().to(few.device)
        index = channels.reshape(*few.shape[:1], 1, -1, *(1,) * spec.order).expand_as(few)
        return few.new_zeros(spec.kernel_shape).scatter(2, index, few)

    def bias_module(self) -> nn.Module:
        """Return the layer on the chosen channels."""
        return self.few


@dataclass(frozen=True)
class ChannelPruning(Scheme):
    """Removes the input channels whose weights have the least energy.

    The rank is the number of remaining channels per group, which a smaller layer selects from the
    input.

    References
    ----------
    He, Zhang, Sun, "Channel pruning for accelerating very deep neural networks", ICCV 2017.
    """

    parts: ClassVar[tuple[float, ...]] = FINE

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse layers without input channels that could be removed."""
        if spec.kind == "Embedding" or spec.transposed:
            return "only input channels of a Linear or a convolution can be removed"
        if min(spec.in_, spec.out) == 1:
            return "it has one channel per group: nothing to cut"
        return None

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return all channels."""
        return (spec.in_,)

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return the shares of energy of the removed channels."""
        energy = float(kernel.square().sum())
        if not energy:
            return [0.0] * len(candidates)
        ascending = _energies(kernel).sort(dim=1).values
        return [
            float(ascending[:, : spec.in_ - channels].sum()) / energy for channels, *_ in candidates
        ]

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return none, because the number of channels is not the rank of a matrix."""
        return ()

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of the smaller layer with its bias; indices are not counted."""
        return narrow_spec(spec, ranks[0]).params

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates for one example."""
        return dense_macs(narrow_spec(spec, ranks[0]), sizes)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> PrunedLayer:
        """Return the uninitialized layer on the first channels."""
        return PrunedLayer(spec, ranks, scheme=self.name, like=like)

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Split each group; return the kernels and, last, the choice of channels."""
        parts = [self.split(group, *ranks) for group in kernel]
        kernels = list(map(torch.stack, zip(*(kernels for _, kernels in parts), strict=True)))
        factors = [*kernels, torch.stack([channels for channels, _ in parts])]
        pressed = self.skeleton(spec, ranks, like=kernel)
        self.fill(pressed, factors)
        norm = float(kernel.norm())
        error = float((kernel - pressed.compose(kernels)).norm()) / norm if norm else 0.0
        return Factorized(factors, error)

    def fill(self, pressed: Pressed, factors: Sequence[Tensor]) -> None:
        """Copy in the kernels, and select the channels."""
        assert isinstance(pressed, PrunedLayer)
        *kernels, channels = factors
        pressed.select(channels)
        pressed.put(pressed.balance(kernels))

    def split(self, kernel: Tensor, *ranks: int) -> tuple[Tensor, list[Tensor]]:
        """Choose channels of one group (out, in, *kernel); return them, ascending, and the kernels.

        Examples
        --------
        >>> pruning = ChannelPruning("channel_pruning", "")
        >>> kernel = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
        >>> channels, kernels = pruning.split(kernel, 2)
        >>> channels.tolist(), kernels[0].tolist()
        ([0, 2], [[3.0, 2.0], [0.0, 2.0]])
        """
        channels = _energies(kernel[None])[0].topk(ranks[0]).indices.sort().values
        return channels, [kernel[:, channels]]


def select_channels(x: Tensor, axis: int, channels: Tensor) -> Tensor:
    """Select channels; a channels_last input stays so, because a copy of all of x would be slow.

    Parameters
    ----------
    x : Tensor
        The input.
    axis : int
        The axis of the channels.
    channels : Tensor
        Their indices.

    Examples
    --------
    >>> select_channels(torch.arange(6).reshape(2, 3), -1, torch.tensor([0, 2])).tolist()
    [[0, 2], [3, 5]]
    """
    last = x.movedim(axis, -1)
    if last.is_contiguous():
        return last.index_select(-1, channels).movedim(-1, axis)
    return x.index_select(axis, channels)


def narrow_spec(spec: LayerSpec, channels: int) -> LayerSpec:
    """Return the spec of a stock layer on ``channels`` input channels per group."""
    return replace(spec, inputs=spec.groups * channels, inputs_first=False)


def _energies(kernel: Tensor) -> Tensor:
    """Return the energy of every input channel, (groups, in)."""
    return kernel.square().transpose(1, 2).flatten(2).sum(2)
