"""What a layer is apart from the values of its weight, and its weight as one canonical kernel."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tensorpress.errors import InvalidArgumentError

Sizes = tuple[int, ...]

CONVS: tuple[type[nn.modules.conv._ConvNd], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[type[nn.modules.conv._ConvNd], ...] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding, *CONVS, *TRANSPOSED)
"""The layers that can be pressed, by their torch classes; and `INPUTS_FIRST`."""

INPUTS_FIRST = ("transformers.pytorch_utils", "Conv1D")
"""Module and name of a Linear, that of GPT-2, whose weight is held as (inputs, outputs)."""

WEIGHT = "weight"
"""The kind of a spec that knows the shape of a weight and nothing of its layer."""


@dataclass(frozen=True)
class Call:
    """A call of a layer, for one example.

    Attributes
    ----------
    sizes : tuple of int
        Spatial sizes of the input of a convolution; of a Linear or an Embedding one number, the
        positions it is applied to.
    times : int
        How often it is made with these sizes.
    """

    sizes: Sizes
    times: int = 1


@dataclass(frozen=True)
class LayerSpec:
    """A layer without its values: everything needed to build it, or a chain in its place.

    Every layer is one canonical kernel of shape (groups, outputs/groups, inputs/groups, *kernel):
    a Linear has no spatial mode, an Embedding is a Linear on one-hot vectors, a transposed
    convolution is a convolution's kernel run the other way.

    Attributes
    ----------
    kind : str
        Name of the torch class, or `WEIGHT` where nothing but the weight matters.
    inputs, outputs : int
        Channels or features; of an Embedding the number and the length of its vectors.
    groups : int
        Of a convolution; 1 for others.
    kernel : tuple of int
        Sizes of the spatial modes.
    stride, padding, dilation, output_padding : tuple of int
        One a spatial mode; ``padding`` may be "same".
    padding_mode : str
        As torch names it.
    bias : bool
        Whether there is one.
    padding_idx : int or None
        Of an Embedding.
    sparse, scale_grad_by_freq : bool
        Of an Embedding.
    inputs_first : bool
        Of a Linear: its weight is held as (inputs, outputs), as the Conv1D of transformers does.
    """

    kind: str
    inputs: int
    outputs: int
    groups: int = 1
    kernel: Sizes = ()
    stride: Sizes = ()
    padding: Sizes | Literal["same"] = ()
    dilation: Sizes = ()
    output_padding: Sizes = ()
    padding_mode: str = "zeros"
    bias: bool = False
    padding_idx: int | None = None
    sparse: bool = False
    scale_grad_by_freq: bool = False
    inputs_first: bool = False

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.kind.startswith("ConvTranspose")

    @property
    def flipped(self) -> bool:
        """Whether its weight has the inputs as first axis, and not the outputs."""
        return self.kind == "Embedding" or self.transposed or self.inputs_first

    @property
    def order(self) -> int:
        """Number of spatial modes."""
        return len(self.kernel)

    @property
    def out(self) -> int:
        """Output channels a group."""
        return self.outputs // self.groups

    @property
    def in_(self) -> int:
        """Input channels a group."""
        return self.inputs // self.groups

    @property
    def kernel_shape(self) -> Sizes:
        """Shape of the canonical kernel: (groups, out, in, *kernel)."""
        return (self.groups, self.out, self.in_, *self.kernel)

    @property
    def weight_shape(self) -> Sizes:
        """Shape of the weight as torch holds it."""
        if self.flipped:
            return (self.inputs, self.out, *self.kernel)
        return (self.outputs, self.in_, *self.kernel)

    @property
    def params(self) -> int:
        """Parameters of the dense layer, its bias included."""
        return prod(self.weight_shape) + self.outputs * self.bias

    def output_sizes(self, sizes: Sizes, modes: Sizes) -> Sizes:
        """Return the spatial sizes after a stage that covers some of the spatial modes.

        Parameters
        ----------
        sizes : tuple of int
            Before it; for a Linear or an Embedding any positions, which stay.
        modes : tuple of int
            The spatial modes covered.

        Raises
        ------
        InvalidArgumentError
            Where the sizes are too small for the kernel.
        """
        found = list(sizes)
        for mode in modes:
            size, reach = sizes[mode], self.dilation[mode] * (self.kernel[mode] - 1)
            if self.padding == "same":
                continue
            pad, step = self.padding[mode], self.stride[mode]
            if self.transposed:
                found[mode] = (size - 1) * step - 2 * pad + reach + self.output_padding[mode] + 1
            else:
                found[mode] = (size + 2 * pad - reach - 1) // step + 1
        if min((found[mode] for mode in modes), default=1) < 1:
            raise InvalidArgumentError(
                f"a {self.kind} with kernel {self.kernel} has no output for sizes {sizes}"
            )
        return tuple(found)


def describe_layer(layer: nn.Module) -> LayerSpec:
    """Return what a layer is.

    Raises
    ------
    InvalidArgumentError
        With the reason, for a layer that cannot be taken apart: another class, a forward pass of
        its own, a parametrized, quantized, empty or not yet shaped weight, hooks.

    Examples
    --------
    >>> spec = describe_layer(nn.Conv2d(8, 16, 3, groups=4, padding="same"))
    >>> spec.kernel_shape, spec.padding
    ((4, 4, 2, 3, 3), 'same')
    """
    reason = refuse_layer(layer)
    if reason is not None:
        raise InvalidArgumentError(f"{_name(layer)} cannot be pressed: {reason}")
    return spec_of(layer)


def spec_of(layer: nn.Module) -> LayerSpec:
    """Return what a layer of a known kind is, whatever holds its weight: see `describe_layer`."""
    if isinstance(layer, nn.Linear):
        return LayerSpec(
            "Linear", layer.in_features, layer.out_features, bias=layer.bias is not None
        )
    if isinstance(layer, nn.Embedding):
        return LayerSpec(
            "Embedding",
            layer.num_embeddings,
            layer.embedding_dim,
            padding_idx=layer.padding_idx,
            sparse=layer.sparse,
            scale_grad_by_freq=layer.scale_grad_by_freq,
        )
    if not isinstance(layer, nn.modules.conv._ConvNd):
        inputs, outputs = (int(getattr(layer, name)) for name in ("nx", "nf"))
        return LayerSpec("Linear", inputs, outputs, bias=True, inputs_first=True)
    none = (0,) * len(layer.kernel_size)
    padding: Sizes | Literal["same"] = none if layer.padding == "valid" else "same"
    return LayerSpec(
        next(kind.__name__ for kind in (*CONVS, *TRANSPOSED) if isinstance(layer, kind)),
        layer.in_channels,
        layer.out_channels,
        layer.groups,
        tuple(layer.kernel_size),
        tuple(layer.stride),
        padding if isinstance(layer.padding, str) else tuple(layer.padding),
        tuple(layer.dilation),
        tuple(layer.output_padding),
        layer.padding_mode,
        layer.bias is not None,
    )


def weight_spec(shape: Sizes) -> LayerSpec:
    """Return the spec of a weight (out, in, *kernel) of whatever layer.

    Raises
    ------
    InvalidArgumentError
        For fewer than two axes.

    Examples
    --------
    >>> weight_spec((20, 10, 5, 5)).weight_shape
    (20, 10, 5, 5)
    """
    if len(shape) < 2:
        raise InvalidArgumentError(f"a weight of shape {tuple(shape)} has no two axes")
    outputs, inputs, *kernel = shape
    return LayerSpec(WEIGHT, inputs, outputs, kernel=tuple(kernel))


def refuse_layer(layer: nn.Module) -> str | None:
    """Return why a layer cannot be taken apart, None where it can.

    Examples
    --------
    >>> refuse_layer(nn.Embedding(10, 4, max_norm=1.0))
    'max_norm changes its vectors at every use'
    """
    if parametrize.is_parametrized(layer):
        return "its weight is parametrized"
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin) and layer.has_uninitialized_params():
        return "it has no shape yet: run the model once"
    kind = layer_class(layer)
    if kind is None:
        return f"only {', '.join(k.__name__ for k in KINDS)} can be"
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight directly"
    if (
        "forward" in vars(layer)  # put there by those who wrap a layer in place
        or type(layer).forward is not kind.forward
        or getattr(type(layer), "_conv_forward", None) is not getattr(kind, "_conv_forward", None)
    ):
        return f"it is a {kind.__name__} with a forward pass of its own"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is no plain parameter (weight norm or the like): remove that first"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    if torch.finfo(weight.dtype).bits < 16:
        return f"its weight is {weight.dtype}, which nothing computes in: convert it first"
    if weight.numel() == 0:
        return "its weight is empty"
    own = {*layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias"}
    if own:
        return f"it holds {', '.join(map(repr, sorted(own)))} as well, which would be lost"
    if layer._parameters.get("bias") is None and getattr(layer, "bias", None) is not None:
        return "its bias is no plain parameter, which would be lost"
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
    if any(hooks) or layer._backward_pre_hooks:
        return "it has hooks, which would be lost: remove them first"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "max_norm changes its vectors at every use"
    return None


def layer_class(layer: nn.Module) -> type[nn.Module] | None:
    """Return the class whose forward pass a layer has, None where it is of no known kind.

    Examples
    --------
    >>> layer_class(nn.Conv2d(2, 3, 1)), layer_class(nn.Bilinear(2, 3, 4))
    (<class 'torch.nn.modules.conv.Conv2d'>, None)
    """
    for kind in type(layer).__mro__:
        if kind in KINDS or (kind.__module__, kind.__qualname__) == INPUTS_FIRST:
            return kind
    return None


def _name(layer: nn.Module) -> str:
    return f"{type(layer).__name__}({layer.extra_repr()})"


def layer_kernel(layer: nn.Module, spec: LayerSpec) -> Tensor:
    """Return a layer's weight as its canonical kernel, a view of shape ``spec.kernel_shape``.

    Examples
    --------
    >>> conv = nn.ConvTranspose2d(4, 6, 3, groups=2)
    >>> layer_kernel(conv, describe_layer(conv)).shape
    torch.Size([2, 3, 2, 3, 3])
    """
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight_to_kernel(weight.detach(), spec)


def weight_to_kernel(weight: Tensor, spec: LayerSpec) -> Tensor:
    """Return the canonical kernel of a weight of torch: the inverse of `kernel_to_weight`."""
    return to_canonical(weight, spec.groups, flipped=spec.flipped)


def kernel_to_weight(kernel: Tensor, spec: LayerSpec) -> Tensor:
    """Return a canonical kernel as the weight that torch holds: the inverse of `weight_to_kernel`.

    Examples
    --------
    >>> linear = nn.Linear(3, 2)
    >>> spec = describe_layer(linear)
    >>> bool((kernel_to_weight(layer_kernel(linear, spec), spec) == linear.weight).all())
    True
    """
    return from_canonical(kernel, flipped=spec.flipped)


def to_canonical(weight: Tensor, groups: int, *, flipped: bool) -> Tensor:
    """Return a weight (groups·out, in, *kernel) as (groups, out, in, *kernel).

    ``flipped`` weights have their inputs first: (groups·in, out, *kernel).
    """
    kernel = weight.reshape(groups, -1, *weight.shape[1:])
    return kernel.transpose(1, 2) if flipped else kernel


def from_canonical(kernel: Tensor, *, flipped: bool) -> Tensor:
    """Return a canonical kernel as a weight: the inverse of `to_canonical`."""
    return (kernel.transpose(1, 2) if flipped else kernel).flatten(0, 1)
