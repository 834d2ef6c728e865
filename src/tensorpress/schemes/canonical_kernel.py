"""Converts weights to canonical kernels (groups, out, in, *kernel), and back."""

from torch import Tensor, nn

from tensorpress.schemes.layer_spec import LayerSpec


def layer_kernel(layer: nn.Module, spec: LayerSpec) -> Tensor:
    """Return the weight of a layer as its canonical kernel, a view of ``spec.kernel_shape``.

    Examples
    --------
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> conv = nn.ConvTranspose2d(4, 6, 3, groups=2)
    >>> layer_kernel(conv, describe_layer(conv)).shape
    torch.Size([2, 3, 2, 3, 3])
    """
    return weight_to_kernel(layer.get_parameter("weight").detach(), spec)


def weight_to_kernel(weight: Tensor, spec: LayerSpec) -> Tensor:
    """Return the canonical kernel of a weight as torch stores it."""
    return weight if spec.stacked else to_canonical(weight, spec.groups, flipped=spec.flipped)


def kernel_to_weight(kernel: Tensor, spec: LayerSpec) -> Tensor:
    """Return the weight that torch stores for a canonical kernel; inverts `weight_to_kernel`.

    Examples
    --------
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> linear = nn.Linear(3, 2)
    >>> spec = describe_layer(linear)
    >>> bool((kernel_to_weight(layer_kernel(linear, spec), spec) == linear.weight).all())
    True
    """
    return kernel if spec.stacked else from_canonical(kernel, flipped=spec.flipped)


def to_canonical(weight: Tensor, groups: int, *, flipped: bool) -> Tensor:
    """Return a weight (groups·out, in, *kernel) as (groups, out, in, *kernel).

    A ``flipped`` weight has its inputs first: (groups·in, out, *kernel).
    """
    kernel = weight.reshape(groups, -1, *weight.shape[1:])
    return kernel.transpose(1, 2) if flipped else kernel


def from_canonical(kernel: Tensor, *, flipped: bool) -> Tensor:
    """Return the weight of a canonical kernel; inverts `to_canonical`."""
    return (kernel.transpose(1, 2) if flipped else kernel).flatten(0, 1)
