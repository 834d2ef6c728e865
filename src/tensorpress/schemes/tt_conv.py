"""A convolution stored as the tensor train of its reshaped kernel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.decompose.tensor_train import tt_svd
from tensorpress.decompose.tt_matvec import tt_macs
from tensorpress.schemes.canonical_kernel import kernel_to_weight
from tensorpress.schemes.chain_builder import build_chain
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.parametrization import RankFactor
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.schemes.scheme import Factorized, Scheme
from tensorpress.schemes.stages import dense_stage
from tensorpress.schemes.tt_weight import TTWeight, TTWeightScheme, train_factors

DENSE_SPEED = 4
"""Speed of a dense convolution's multiplications relative to a train's small products."""


class TTConv(Pressed):
    """A few spatial filters, the same for every input channel, then a TT-matrix over the channels.

    ``filters`` (r₀, *kernel) are the first core, and ``cores`` (r, m, n, r') the others. Without
    gradients, the input is contracted with one core after another if this takes at most a quarter
    of the dense layer's multiplications. Otherwise the kernel is rebuilt, which is faster.

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
        self.contracted = _is_contracted(weight)
        self.geometry = build_chain(replace(spec, bias=False), [dense_stage(spec)], like=like)[0]
        self.geometry.register_parameter("weight", None)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map (*, inputs, *sizes) to (*, outputs, *sizes)."""
        if torch.is_grad_enabled() or not self.contracted:
            return self._convolve(input, self.dense_weight(), self.bias)
        batch = input if input.ndim > self.spec.order + 1 else input.unsqueeze(0)
        output = self._contract(batch)
        if self.bias is not None:
            output = output + self.bias.reshape(-1, *(1,) * self.spec.order)
        return output if batch is input else output.squeeze(0)

    def _contract(self, x: Tensor) -> Tensor:
        first, *others = self.cores
        (_, m, n, rank), columns = first.shape, self.spec.inputs // first.shape[2]
        # Σ_α G₀[α, x, y] G₁[α, i₁, j₁, β] is a kernel [(i₁, β), j₁, x, y] for channels that share
        # j₂, …, j_d: (N, n₁·columns, …) → (N·columns, m₁·r₁, …).
        products = (
            first.transpose(2, 3).unsqueeze(-1) * self.filters.flatten(1)[:, None, None, None]
        )
        kernel = products.sum(0).reshape(m * rank, n, *self.spec.kernel)
        channels = x.reshape(-1, n, columns, *x.shape[2:]).transpose(1, 2).flatten(0, 1)
        filtered = self._convolve(channels, kernel, None)
        sizes, positions = filtered.shape[2:], prod(filtered.shape[2:])
        state = filtered.reshape(-1, columns, m, rank, positions).permute(0, 2, 3, 1, 4)
        # (N·m₁⋯m_{k-1}, r_{k-1}·n_k, n_{k+1}⋯n_d·positions) → (N·m₁⋯m_{k-1}, m_k·r_k, …)
        for core in others:
            left, m, n, right = core.shape
            columns //= n
            matrix = core.permute(1, 3, 0, 2).reshape(m * right, left * n)
            state = matrix @ state.reshape(-1, left * n, columns * positions)
        output: Tensor = state.reshape(-1, self.spec.outputs, *sizes)
        return output

    def _convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        # A tuple, because PyTorch 2.6 does not compile unions here
        assert isinstance(self.geometry, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        output: Tensor = self.geometry._conv_forward(x, kernel, bias)
        return output

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
        """Return the kernel composed of the cores."""
        first = self.filters.flatten(1).mT.unsqueeze(0)
        cores = [first, *(core.flatten(1, 2) for core in self.cores)]
        # Copies, because torch's FlopCounterMode fails for modules that take views of parameters.
        rebuilt: Tensor = self.tt_weight(*(core.clone() for core in cores))
        return rebuilt.contiguous()


def _contraction_macs(weight: TTWeight) -> int:
    """Return the multiplications per position for contracting the input with the cores."""
    # Filters and first core act as one core of K·n₁ columns.
    columns = (prod(weight.shape[2:]) * weight.column_modes[0], *weight.column_modes[1:])
    return tt_macs(weight.row_modes, columns, weight.ranks[1:], from_left=True)


def _is_contracted(weight: TTWeight) -> bool:
    return DENSE_SPEED * _contraction_macs(weight) <= prod(weight.shape)


@dataclass(frozen=True)
class TTConvScheme(TTWeightScheme):
    """The tensor train of `TTWeight` in layer form, which multiplies less at small ranks.

    References
    ----------
    Garipov, Podoprikhin, Novikov, Vetrov (2016), "Ultimate tensorization", sec. 3.
    """

    form: ClassVar[Literal["layer", "weight"]] = "layer"

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse all but plain convolutions, and kernels of size 1."""
        if not spec.order or spec.transposed:
            return "it is not a plain convolution: use tensor_train or tt_weight"
        if spec.groups > 1:
            return "it has groups: use tensor_train or tt_weight"
        if prod(spec.kernel) == 1:
            return "its kernel has size 1: use tensor_train"
        return super().refusal(spec)

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the count of the contraction, or of the dense layer; see `TTConv`."""
        weight = self.parametrization(spec, ranks)
        if not _is_contracted(weight):
            return super().macs(spec, ranks, sizes)
        return prod(spec.output_sizes(sizes, tuple(range(spec.order)))) * _contraction_macs(weight)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> TTConv:
        """Return the uninitialized layer."""
        weight = self.parametrization(spec, ranks)
        return TTConv(spec, weight, scheme=self.name, like=like)

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Decompose by TT-SVD."""
        tensor = self.parametrization(spec, ranks).reshape(kernel_to_weight(kernel, spec))
        train = tt_svd(tensor, ranks=ranks)
        return Factorized(train.cores, train.relative_error)

    decompose = Scheme.decompose  # the one for layer form
