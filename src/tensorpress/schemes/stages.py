"""Stages: the smaller kernels that replace a kernel, their cost and their product."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

import torch
from torch import Tensor

from tensorpress.schemes.layer_spec import LayerSpec, Sizes


@dataclass(frozen=True)
class Stage:
    """Shape of one kernel of a chain: (groups, out, in, *kernel).

    A stage covers the spatial ``modes``: it has their sizes, stride, padding and dilation, and size
    1 along the others. Exactly one stage covers each spatial mode of a layer.
    """

    groups: int
    out: int
    in_: int
    modes: Sizes = ()

    def kernel_shape(self, spec: LayerSpec) -> Sizes:
        """Return the shape of the stage's canonical kernel."""
        return (self.groups, self.out, self.in_, *self.kernel(spec))

    def kernel(self, spec: LayerSpec) -> Sizes:
        """Return the spatial sizes of the stage's kernel."""
        return tuple(size if m in self.modes else 1 for m, size in enumerate(spec.kernel))

    def params(self, spec: LayerSpec) -> int:
        """Return the number of entries of the stage's kernel."""
        return prod(self.kernel_shape(spec))


def dense_stage(spec: LayerSpec) -> Stage:
    """Return the dense layer itself as a chain of one."""
    return Stage(spec.groups, spec.out, spec.in_, tuple(range(spec.order)))


def params(spec: LayerSpec, stages: Sequence[Stage]) -> int:
    """Return the parameters of a chain, the bias included."""
    return sum(stage.params(spec) for stage in stages) + spec.outputs * spec.bias


def dense_macs(spec: LayerSpec, sizes: Sizes) -> int:
    """Return the multiply-accumulates of the dense layer for one example; see `macs`."""
    return macs(spec, [dense_stage(spec)], sizes)


def macs(spec: LayerSpec, stages: Sequence[Stage], sizes: Sizes) -> int:
    """Return the multiply-accumulates of a chain for one example, as torch counts them.

    A convolution multiplies its kernel at every position of its output, a transposed convolution at
    every position of its input. Looking up an embedding is free.

    Parameters
    ----------
    spec : LayerSpec
        The dense layer.
    stages : sequence of Stage
        The chain.
    sizes : tuple of int
        Spatial sizes of the input; for a Linear or Embedding, positions, () for one vector.

    Examples
    --------
    >>> from torch import nn
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> spec = describe_layer(nn.Conv2d(3, 8, 3))
    >>> macs(spec, [dense_stage(spec)], (10, 10))
    13824
    """
    total = 0
    for number, stage in enumerate(stages):
        before, sizes = sizes, spec.output_sizes(sizes, stage.modes)
        if number == 0 and spec.kind == "Embedding":
            continue
        positions = before if spec.transposed and stage.modes else sizes
        total += prod(positions) * stage.params(spec)
    return total


def compose(kernels: Sequence[Tensor], groups: int) -> Tensor:
    """Return the product of the kernels of a chain.

    Parameters
    ----------
    kernels : sequence of Tensor
        Kernels (g, out, in, *kernel), first to last, with g a multiple of ``groups``.
    groups : int
        Groups of the layer.

    Returns
    -------
    Tensor
        Tensor of shape (groups, out, in, *kernel), computed in the dtype of the kernels.

    Examples
    --------
    >>> compose([torch.ones(1, 2, 3), torch.ones(1, 4, 2)], 1).shape
    torch.Size([1, 4, 3])
    """
    return reduce(_contract, (_block_diagonal(kernel, groups) for kernel in kernels))


def _contract(first: Tensor, second: Tensor) -> Tensor:
    """Contract the channels between two kernels, which have no spatial mode in common."""
    product = second.movedim((1, 2), (-2, -1)) @ first.movedim((1, 2), (-2, -1))
    return product.movedim((-2, -1), (1, 2))


def _block_diagonal(kernel: Tensor, groups: int) -> Tensor:
    """Turn a kernel with more groups than the layer into a block-diagonal one with as many."""
    inner = kernel.shape[0] // groups
    if inner == 1:
        return kernel
    blocks = kernel.reshape(groups, inner, *kernel.shape[1:]).movedim(1, -1)
    full = torch.diag_embed(blocks, dim1=1, dim2=3)  # (groups, inner, out, inner, in, *kernel)
    return full.flatten(3, 4).flatten(1, 2)


def balance_kernels(kernels: Sequence[Tensor]) -> list[Tensor]:
    """Scale the kernels of a chain to equal norms, without changing their product.

    Equal norms suit training and quantization, and stay within the range of half precision.

    Examples
    --------
    >>> [float(v) for v in balance_kernels([torch.tensor([8.0]), torch.tensor([2.0])])]
    [4.0, 4.0]
    """
    norms = [float(kernel.norm()) for kernel in kernels]
    if min(norms) == 0:
        return list(kernels)
    mean = prod(norm ** (1 / len(norms)) for norm in norms)
    return [kernel * (mean / norm) for kernel, norm in zip(kernels, norms, strict=True)]


def pointwise_kernel(matrix: Tensor, spec: LayerSpec) -> Tensor:
    """Return matrices (groups, out, in) as the kernel of a stage that covers no mode."""
    return matrix.reshape(*matrix.shape, *(1,) * spec.order)


def axis_kernel(kernel: Tensor, spec: LayerSpec, mode: int) -> Tensor:
    """Return a kernel (groups, out, in, k) as the kernel of a stage along one mode."""
    shape = [1] * spec.order
    shape[mode] = kernel.shape[3]
    return kernel.reshape(*kernel.shape[:3], *shape)
