"""What a layer is apart from the values of its weight."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import nn
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
"""Module and name of the Linear of GPT-2, whose weight is stored as (inputs, outputs)."""

WEIGHT = "weight"
"""Kind of a spec that knows the shape of a weight and nothing of its layer."""


@dataclass(frozen=True)
class Call:
    """How often an example calls a layer with inputs of some sizes.

    Attributes
    ----------
    sizes : tuple of int
        Spatial sizes of the input of a convolution; for a Linear or an Embedding the number of
        positions it is applied to.
    times : int
        How often the layer is called with these sizes.
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
        Channels or features; for an Embedding the number and the length of its vectors.
    groups : int
        Groups of a convolution; 1 for other layers.
    kernel : tuple of int
        Sizes of the spatial modes.
    stride, padding, dilation, output_padding : tuple of int
        One number for each spatial mode; ``padding`` may be "same".
    padding_mode : str
        Padding mode of a convolution, as torch names it.
    bias : bool
        Whether the layer has a bias.
    padding_idx, sparse, scale_grad_by_freq
        Arguments of an Embedding.
    inputs_first : bool
        Whether a Linear stores its weight as (inputs, outputs), as the Conv1D of transformers does.
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
        """Whether the layer is a transposed convolution."""
        return self.kind.startswith("ConvTranspose")

    @property
    def flipped(self) -> bool:
        """Whether the first axis of the weight is the inputs, and not the outputs."""
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
        """Shape of the weight as torch stores it."""
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
            Sizes before the stage; for a Linear or an Embedding any positions, which stay.
        modes : tuple of int
            Spatial modes that the stage covers.

        Raises
        ------
        InvalidArgumentError
            If the sizes are too small for the kernel.
        """
        result = list(sizes)
        for mode in modes:
            size, reach = sizes[mode], self.dilation[mode] * (self.kernel[mode] - 1)
            if self.padding == "same":
                continue
            pad, step = self.padding[mode], self.stride[mode]
            if self.transposed:
                result[mode] = (size - 1) * step - 2 * pad + reach + self.output_padding[mode] + 1
            else:
                result[mode] = (size + 2 * pad - reach - 1) // step + 1
        if min((result[mode] for mode in modes), default=1) < 1:
            raise InvalidArgumentError(
                f"a {self.kind} with kernel {self.kernel} has no output for sizes {sizes}"
            )
        return tuple(result)


def describe_layer(layer: nn.Module) -> LayerSpec:
    """Return the spec of a layer.

    Raises
    ------
    InvalidArgumentError
        For a layer that cannot be pressed, with the reason of `refuse_layer`.

    Examples
    --------
    >>> spec = describe_layer(nn.Conv2d(8, 16, 3, groups=4, padding="same"))
    >>> spec.kernel_shape, spec.padding
    ((4, 4, 2, 3, 3), 'same')
    """
    reason = refuse_layer(layer)
    if reason is not None:
        name = f"{type(layer).__name__}({layer.extra_repr()})"
        raise InvalidArgumentError(f"{name} cannot be pressed: {reason}")
    return read_spec(layer)


def read_spec(layer: nn.Module) -> LayerSpec:
    """Return the spec of a layer of `KINDS` or `INPUTS_FIRST`, without the checks of a weight."""
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
    """Return the spec of kind `WEIGHT` for a weight of shape (out, in, *kernel).

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
    """Return why a layer cannot be pressed, None where it can.

    Reasons are another class, a forward pass that is not that of the class, a weight that is
    parametrized, quantized, empty or not yet shaped, hooks, and state that would be lost.

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
    others = {*layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias"}
    if others:
        return f"it holds {', '.join(map(repr, sorted(others)))} as well, which would be lost"
    if layer._parameters.get("bias") is None and getattr(layer, "bias", None) is not None:
        return "its bias is no plain parameter, which would be lost"
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
    if any(hooks) or layer._backward_pre_hooks:
        return "it has hooks, which would be lost: remove them first"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "max_norm changes its vectors at every use"
    return None


def layer_class(layer: nn.Module) -> type[nn.Module] | None:
    """Return which of `KINDS` or `INPUTS_FIRST` a layer is or derives from, None for others.

    Examples
    --------
    >>> layer_class(nn.Conv2d(2, 3, 1)), layer_class(nn.Bilinear(2, 3, 4))
    (<class 'torch.nn.modules.conv.Conv2d'>, None)
    """
    for kind in type(layer).__mro__:
        if kind in KINDS or (kind.__module__, kind.__qualname__) == INPUTS_FIRST:
            return kind
    return None
