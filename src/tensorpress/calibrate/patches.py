"""Patches: the input vectors that a layer multiplies by its kernel, and its output vectors."""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.schemes.layer_spec import CONVS, TRANSPOSED, layer_class, overrides_forward

ANY_CONV = (*CONVS, *TRANSPOSED)


def can_unfold(module: nn.Module) -> bool:
    """Return whether a module multiplies vectors by a kernel, as `unfold_inputs` needs.

    These are a Linear, the Conv1D of GPT-2, convolutions, and transposed convolutions. A forward
    pass of their own may multiply other vectors than those of the input, as after padding.

    Examples
    --------
    >>> can_unfold(nn.Conv1d(3, 4, 5)), can_unfold(nn.ConvTranspose1d(3, 4, 5))
    (True, True)
    >>> can_unfold(nn.Embedding(3, 4))
    False
    """
    return (
        layer_class(module) not in (None, nn.Embedding)
        and not overrides_forward(module)
        and "weight" in module._parameters
        and (module.get_parameter("weight").ndim >= 2)
    )


def unfold_inputs(
    layer: nn.Module, x: Tensor, max_rows: int | None = None, random: torch.Generator | None = None
) -> Tensor:
    """Return the input vectors that a layer multiplies by its canonical kernel.

    Parameters
    ----------
    layer : nn.Module
        A layer for which `can_unfold` is true.
    x : Tensor
        The layer's input, shape (..., columns) for a Linear, (batch, channels, ...) or
        (channels, ...) for a convolution.
    max_rows : int, optional
        Most positions; more are sampled at random.
    random : torch.Generator, optional
        The generator of the sample.

    Returns
    -------
    Tensor
        Tensor of shape (positions, groups, columns), with positions in the order of the outputs and
        the columns of a canonical kernel (groups, out, in, *kernel) flattened from ``in`` on.

    Examples
    --------
    >>> conv, x = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), torch.randn(2, 4, 5, 5)
    >>> rows = unfold_inputs(conv, x)
    >>> y = torch.einsum("pgc,goc->pgo", rows, conv.weight.reshape(2, 3, 18)).flatten(1)
    >>> torch.allclose(y.reshape(2, 5, 5, 6).movedim(-1, 1), conv(x), atol=1e-5)
    True
    """
    if not isinstance(layer, ANY_CONV):
        rows = x.reshape(-1, 1, x.shape[-1])
        if max_rows is None or len(rows) <= max_rows:
            return rows
        return rows[torch.randint(len(rows), (max_rows,), generator=random)]
    order = len(layer.kernel_size)
    if x.ndim == order + 1:
        x = x[None]
    if max_rows is not None:  # channels last, so that sampled values are adjacent
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    patches = _windows(layer, x)
    positions = patches.shape[: order + 1]
    if max_rows is not None and positions.numel() > max_rows:
        flat = torch.randint(positions.numel(), (max_rows,), generator=random)
        patches = patches[torch.unravel_index(flat.to(x.device), positions)]
    if isinstance(layer, TRANSPOSED):
        patches = patches.flip(tuple(range(-order, 0)))
    columns = layer.in_channels // layer.groups * prod(layer.kernel_size)
    return patches.reshape(-1, layer.groups, columns)


def outputs_first(layer: nn.Module) -> bool:
    """Return whether the rows of a layer's weight are its outputs.

    Examples
    --------
    >>> outputs_first(nn.Conv1d(3, 4, 5)), outputs_first(nn.ConvTranspose1d(3, 4, 5))
    (True, False)
    """
    return isinstance(layer, (nn.Linear, *CONVS))


def output_rows(layer: nn.Module, y: Tensor) -> Tensor:
    """Return the outputs of a layer as (positions, groups, outputs per group).

    Examples
    --------
    >>> output_rows(nn.Conv2d(4, 6, 3, groups=2), torch.zeros(2, 6, 5, 5)).shape
    torch.Size([50, 2, 3])
    """
    groups = 1
    if isinstance(layer, ANY_CONV):
        y, groups = y.movedim(-len(layer.kernel_size) - 1, -1), layer.groups
    return y.reshape(-1, groups, y.shape[-1] // groups)


def _windows(layer: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """Return a view of shape (batch, *positions, channels, *kernel)."""
    if isinstance(layer, TRANSPOSED):
        x, stride = _spread(layer, x), (1,) * len(layer.kernel_size)
    else:
        stride = layer.stride
        padding = layer._reversed_padding_repeated_twice
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        if any(padding):
            x = functional.pad(x, padding, mode=mode)
    for axis, size in enumerate(layer.kernel_size):
        reach = layer.dilation[axis] * (size - 1) + 1
        x = x.unfold(2 + axis, reach, stride[axis])[..., :: layer.dilation[axis]]
    return x.movedim(1, len(layer.kernel_size) + 1)


def _spread(layer: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """Return the input of the plain convolution that equals a transposed one.

    The input gets stride - 1 zeros between values, dilation · (kernel - 1) - padding zeros at both
    ends (a negative number cuts values off), and the output padding at the end. The kernel of the
    plain convolution is reversed.
    """
    sizes = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], layer.stride, strict=True)]
    spread = x.new_zeros(len(x), *sizes, x.shape[1]).movedim(-1, 1)
    places = tuple(slice(None, None, step) for step in (1, 1, *layer.stride))
    spread[places] = x
    ends = []
    for axis in reversed(range(len(sizes))):
        assert not isinstance(layer.padding, str)
        end = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - layer.padding[axis]
        ends += [end, end + layer.output_padding[axis]]
    return functional.pad(spread, ends)
