"""Patches: the vectors that a Linear or a convolution multiplies its weight with."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.schemes.layer_spec import CONVS, layer_class

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def can_unfold(module: nn.Module) -> bool:
    """Return whether a module is a Linear or a convolution of torch, as `unfold_inputs` needs.

    Examples
    --------
    >>> can_unfold(nn.Conv1d(3, 4, 5)), can_unfold(nn.ConvTranspose1d(3, 4, 5))
    (True, False)
    """
    return (
        layer_class(module) in (nn.Linear, *CONVS)
        and "weight" in module._parameters
        and (module.get_parameter("weight").ndim >= 2)
    )


def unfold_inputs(
    layer: nn.Module, x: Tensor, max_rows: int | None = None, random: torch.Generator | None = None
) -> Tensor:
    """Return the vectors that the rows of a layer's weight are multiplied with.

    Parameters
    ----------
    layer : nn.Module
        A layer for which `can_unfold` is true.
    x : Tensor
        The layer's input, shape (..., columns) for a Linear, (batch, channels, ...) or
        (channels, ...) for a convolution.
    max_rows : int, optional
        Number of positions that are drawn at random if there are more.
    random : torch.Generator, optional
        The generator that draws them.

    Returns
    -------
    Tensor
        Tensor of shape (positions, groups, columns), with the columns of ``weight.flatten(1)``.

    Examples
    --------
    >>> conv, x = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), torch.randn(2, 4, 5, 5)
    >>> rows = unfold_inputs(conv, x)
    >>> y = torch.einsum("pgc,goc->pgo", rows, conv.weight.reshape(2, 3, 18)).flatten(1)
    >>> torch.allclose(y.reshape(2, 5, 5, 6).movedim(-1, 1), conv(x), atol=1e-5)
    True
    """
    if not isinstance(layer, CONVS):
        rows = x.reshape(-1, 1, x.shape[-1])
        if max_rows is None or len(rows) <= max_rows:
            return rows
        return rows[torch.randint(len(rows), (max_rows,), generator=random)]
    order = len(layer.kernel_size)
    if x.ndim == order + 1:
        x = x[None]
    if max_rows is not None:  # channels last, so that what is picked lies close together
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    patches = _windows(layer, x)
    positions = patches.shape[: order + 1]
    if max_rows is not None and positions.numel() > max_rows:
        flat = torch.randint(positions.numel(), (max_rows,), generator=random)
        patches = patches[torch.unravel_index(flat.to(x.device), positions)]
    return patches.reshape(-1, layer.groups, layer.weight[0].numel())


def _windows(layer: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """Return a view of shape (batch, *positions, channels, *kernel)."""
    padding = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if any(padding):
        x = functional.pad(x, padding, mode=mode)
    for axis, size in enumerate(layer.kernel_size):
        reach = layer.dilation[axis] * (size - 1) + 1
        x = x.unfold(2 + axis, reach, layer.stride[axis])[..., :: layer.dilation[axis]]
    return x.movedim(1, len(layer.kernel_size) + 1)
