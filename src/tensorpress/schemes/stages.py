"""Stages: the smaller kernels a kernel is split into, their cost, and their composition."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

import torch
from torch import Tensor

from tensorpress.schemes.layer_spec import LayerSpec, Sizes


@dataclass(frozen=True)
class Stage:
    """Shape of one kernel of a chain: (groups, out, in, *kernel), with 1 for modes not covered.

    ``modes`` are the spatial modes it covers: it has their stride, padding and dilation. Every
    spatial mode of a layer is covered by exactly one stage.
    """

    groups: int
    out: int
    in_: int
    modes: Sizes = ()

    def kernel_shape(self, spec: LayerSpec) -> Sizes:
        """Return the shape of its canonical kernel in a chain for the layer."""
        return (self.groups, self.out, self.in_, *self.kernel(spec))

    def kernel(self, spec: LayerSpec) -> Sizes:
        """Return its spatial sizes, 1 for modes not covered."""
        return tuple(size if m in self.modes else 1 for m, size in enumerate(spec.kernel))

    def params(self, spec: LayerSpec) -> int:
        """Return the number of entries of its kernel."""
        return prod(self.kernel_shape(spec))


def dense_stage(spec: LayerSpec) -> Stage:
    """Return the dense layer itself as a chain of one."""
    return Stage(spec.groups, spec.out, spec.in_, tuple(range(spec.order)))


def params(spec: LayerSpec, stages: Sequence[Stage]) -> int:
    """Return the parameters of a chain, the bias included."""
    return sum(stage.params(spec) for stage in stages) + spec.outputs * spec.bias


def macs(spec: LayerSpec, stages: Sequence[Stage], sizes: Sizes) -> int:
    """Return the multiply-accumulates of a chain for one example, as torch counts them.

    A convolution multiplies its kernel at every position of its output, a transposed one
    at every position of its input; looking up an embedding is free.

    Parameters
    ----------
    spec : LayerSpec
        Of the layer.
    stages : sequence of Stage
        The chain.
    sizes : tuple of int
        Spatial sizes of the input; for a Linear or Embedding the positions, () for one vector.

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
    """Return the kernel that a chain of kernels stands for.

    Parameters
    ----------
    kernels : sequence of Tensor
        Canonical, first to last, each (g, out, in, *kernel) with a multiple g of ``groups``.
    groups : int
        Of the layer.

    Returns
    -------
    Tensor
        Shape (groups, out, in, *kernel), in the dtype of the kernels, computed in theirs.

    Examples
    --------
    >>> compose([torch.ones(1, 2, 3), torch.ones(1, 4, 2)], 1).shape
    torch.Size([1, 4, 3])
    """
    return reduce(_after, (_within_groups(kernel, groups) for kernel in kernels))


def _after(first: Tensor, second: Tensor) -> Tensor:
    """Contract the channels between two kernels; spatial modes that one has, the other has not."""
    product = second.movedim((1, 2), (-2, -1)) @ first.movedim((1, 2), (-2, -1))
    return product.movedim((-2, -1), (1, 2))


def _within_groups(kernel: Tensor, groups: int) -> Tensor:
    """Return a kernel with more groups than the layer as one with the layer's, block-diagonal."""
    inner = kernel.shape[0] // groups
    if inner == 1:
        return kernel
    blocks = kernel.reshape(groups, inner, *kernel.shape[1:]).movedim(1, -1)
    full = torch.diag_embed(blocks, dim1=1, dim2=3)  # (groups, inner, out, inner, in, *kernel)
    return full.flatten(3, 4).flatten(1, 2)


def pointwise_kernel(matrix: Tensor, spec: LayerSpec) -> Tensor:
    """Return matrices (groups, out, in) as the canonical kernels of a stage that covers no mode."""
    return matrix.reshape(*matrix.shape, *(1,) * spec.order)


def axis_kernel(kernel: Tensor, spec: LayerSpec, mode: int) -> Tensor:
    """Return kernels (groups, out, in, k) as canonical ones of a stage along one spatial mode."""
    shape = [1] * spec.order
    shape[mode] = kernel.shape[3]
    return kernel.reshape(*kernel.shape[:3], *shape)
