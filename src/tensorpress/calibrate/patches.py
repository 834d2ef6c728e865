"""The vectors that a layer multiplies its weight with: inputs of a Linear, patches of a conv."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.schemes.layer_spec import CONVS, layer_class

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def can_unfold(module: nn.Module) -> bool:
    """Return whether `unfold_inputs` knows a module: a Linear or a convolution of stock torch.

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
    layer: nn.Module, x: Tensor, most: int | None = None, random: torch.Generator | None = None
) -> Tensor:
    """Return the vectors that the rows of a layer's weight are multiplied with.

    Parameters
    ----------
    layer : nn.Module
        One that `can_unfold`.
    x : Tensor
        Its input.
    most : int, optional
        Take a random choice of so many positions where there are more.
    random : torch.Generator, optional
        Where the choice comes from.

    Returns
    -------
    Tensor
        Shape (positions, groups, columns): the columns are those of ``weight.flatten(1)``.

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
        return rows if most is None or len(rows) <= most else rows[_some(len(rows), most, random)]
    order = len(layer.kernel_size)
    if x.ndim == order + 1:
        x = x[None]
    patches = _windows(layer, x)  # (batch, *positions, channels, *kernel), a view
    places = patches.shape[: order + 1]
    if most is not None and places.numel() > most:
        chosen = torch.unravel_index(_some(places.numel(), most, random).to(x.device), places)
        patches = patches[chosen]
    return patches.reshape(-1, layer.groups, layer.weight[0].numel())


def _windows(layer: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    around = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if any(around):
        x = functional.pad(x, around, mode=mode)
    for axis, size in enumerate(layer.kernel_size):
        reach = layer.dilation[axis] * (size - 1) + 1
        x = x.unfold(2 + axis, reach, layer.stride[axis])[..., :: layer.dilation[axis]]
    return x.movedim(1, len(layer.kernel_size) + 1)


def _some(count: int, most: int, random: torch.Generator | None) -> Tensor:
    return torch.randint(count, (most,), generator=random)
