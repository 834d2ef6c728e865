"""A convolution as the tensor train of its reshaped kernel, which it never builds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.decompose.tensor_train import tt_svd
from tensorpress.decompose.tt_matvec import tt_multiply
from tensorpress.schemes.canonical_kernel import kernel_to_weight
from tensorpress.schemes.chain_builder import build_chain
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.parametrization import RankFactor
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.schemes.scheme import Factorized, Scheme
from tensorpress.schemes.stages import Stage
from tensorpress.schemes.tt_layers import contraction_macs
from tensorpress.schemes.tt_weight import TTWeight, TTWeightScheme, train_factors

torch.fx.wrap("tt_multiply")  # torch.fx does not look into it


class TTConv(Pressed):
    """A few spatial filters, the same for every input channel, then a TT-matrix over the channels.

    ``filters`` (r₀, *kernel) are the core G₀. Their output has channels (r₀·n₁, n₂, …), and the
    other cores (r, m, n, r') are a TT-matrix that multiplies them at every position.

    Parameters
    ----------
    spec : LayerSpec
        The dense convolution.
    weight : TTWeight
        Modes and ranks of the kernel's train.
    scheme : str
        Name of the scheme.
    like : Tensor
        Gives device and dtype.
    """

    def __init__(self, spec: LayerSpec, weight: TTWeight, *, scheme: str, like: Tensor) -> None:
        super().__init__()
        self.spec, self.scheme, self.ranks = spec, scheme, weight.ranks
        self.tt_weight = weight
        filters = weight.ranks[0]
        self.filters = nn.Parameter(like.new_empty(filters, *spec.kernel))
        ends = (*weight.ranks, 1)
        modes = zip(weight.row_modes, weight.column_modes, strict=True)
        self.cores = nn.ParameterList(
            like.new_empty(ends[k], m, n, ends[k + 1]) for k, (m, n) in enumerate(modes)
        )
        self.register_parameter("bias", None)
        if spec.bias:
            self.bias = nn.Parameter(like.new_empty(spec.outputs))
        _, self.from_left = contraction_macs(*_channel_matrix(weight))
        stage = Stage(spec.inputs, filters, 1, tuple(range(spec.order)))
        self.geometry = build_chain(replace(spec, bias=False), [stage], like=like)[0]
        self.geometry.register_parameter("weight", None)  # every channel has the same filters

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map (*, inputs, *sizes) to (*, outputs, *sizes)."""
        spec, rank, axis = self.spec, self.ranks[0], -1 - self.spec.order
        weight = self.filters.repeat(spec.inputs, *(1,) * spec.order).unsqueeze(1)
        assert isinstance(self.geometry, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        filtered = self.geometry._conv_forward(input, weight, None)
        split = filtered.unflatten(axis, (spec.inputs, rank))
        vectors = split.movedim((axis, axis - 1), (-2, -1)).flatten(-2)
        first, *others = self.cores
        joined = first.transpose(0, 1).flatten(1, 2).unsqueeze(0)
        product = tt_multiply([joined, *others], vectors, from_left=self.from_left)
        if self.bias is not None:
            product = product + self.bias
        return product.movedim(-1, axis)

    def rank_factors(self) -> list[RankFactor]:
        """Return the filters as the first core, and the other cores."""
        first = self.filters.detach().flatten(1).mT.unsqueeze(0)
        return train_factors([first, *(core.detach() for core in self.cores)])

    def put_rank_factors(self, values: Sequence[Tensor]) -> None:
        """Copy in the filters and cores."""
        first, *others = values
        with torch.no_grad():
            self.filters.copy_(first.mT.reshape(self.filters.shape))
            for core, value in zip(self.cores, others, strict=True):
                core.copy_(value.reshape(core.shape))

    def dense_weight(self) -> Tensor:
        """Return the kernel that the cores stand for."""
        cores = [core.flatten(1, 2) for core in self.cores]
        weight: Tensor = self.tt_weight(self.filters.flatten(1).mT.unsqueeze(0), *cores)
        return weight.contiguous()


def _channel_matrix(weight: TTWeight) -> tuple[Sizes, Sizes, Sizes]:
    """Return row modes, column modes and ranks of the TT-matrix over the channels."""
    first, *others = weight.column_modes
    return weight.row_modes, (weight.ranks[0] * first, *others), weight.ranks[1:]


@dataclass(frozen=True)
class TTConvScheme(TTWeightScheme):
    """The tensor train of `TTWeight` in layer form, with fewer multiplications at small ranks.

    References
    ----------
    Garipov, Podoprikhin, Novikov, Vetrov (2016), "Ultimate tensorization", sec. 3.
    """

    form: ClassVar[Literal["layer", "weight"]] = "layer"

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse what is no plain convolution, and kernels of size 1."""
        if not spec.order or spec.transposed:
            return "it is no convolution, or a transposed one: use tensor_train or tt_weight"
        if spec.groups > 1:
            return "it has groups: use tensor_train or tt_weight"
        if prod(spec.kernel) == 1:
            return "its kernel has size 1: use tensor_train"
        return super().refusal(spec)

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates of filters and TT-matrix at every output position."""
        positions = prod(spec.output_sizes(sizes, tuple(range(spec.order))))
        filtering = spec.inputs * ranks[0] * prod(spec.kernel)
        mixing, _ = contraction_macs(*_channel_matrix(self.parametrization(spec, ranks)))
        return positions * (filtering + mixing)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> TTConv:
        """Return the layer uninitialized."""
        weight = self.parametrization(spec, ranks)
        return TTConv(spec, weight, scheme=self.name, like=like)

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Decompose by TT-SVD."""
        tensor = self.parametrization(spec, ranks).reshape(kernel_to_weight(kernel, spec))
        train = tt_svd(tensor, ranks=ranks)
        return Factorized(train.cores, train.relative_error)

    decompose = Scheme.decompose  # that of a scheme in layer form
