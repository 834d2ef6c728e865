"""Specs: all that describes a layer except the values of its weight."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from tensorpress.errors import InvalidArgumentError
from tensorpress.utils.tensor_kinds import is_plain

Sizes = tuple[int, ...]

CONVS: tuple[type[nn.modules.conv._ConvNd], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[type[nn.modules.conv._ConvNd], ...] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding, *CONVS, *TRANSPOSED)
"""The torch classes of layers that can be pressed, besides `INPUTS_FIRST`."""

INPUTS_FIRST = ("transformers.pytorch_utils", "Conv1D")
"""Module and name of the Linear of GPT-2, whose weight is stored as (inputs, outputs)."""

WEIGHT = "weight"
"""Kind of a spec that describes only the shape of a weight, not its layer."""

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Layers whose parameters scale and shift features."""


@dataclass(frozen=True)
class Call:
    """The calls of a layer by one example, with inputs of one size.

    Attributes
    ----------
    sizes : tuple of int
        Spatial sizes of a convolution's input; for a Linear or an Embedding, the number of
        positions.
    times : int
        How often the layer is called with these sizes.
    """

    sizes: Sizes
    times: int = 1


@dataclass(frozen=True)
class LayerSpec:
    """A layer without its values: all that is needed to build it, or a chain that replaces it.

    Every layer has one canonical kernel of shape (groups, outputs/groups, inputs/groups, *kernel).
    A Linear has no spatial modes, an Embedding is a Linear on one-hot vectors, and a transposed
    convolution applies the kernel of a convolution backwards.

    Attributes
    ----------
    kind : str
        Name of the torch class, or `WEIGHT` if only the shape of a weight is known.
    inputs, outputs : int
        Channels or features; for an Embedding, the number and the length of its vectors.
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
    stacked : bool
        Whether the weight is a stack of matrices (groups, outputs/groups, inputs/groups), as for
        experts.
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
    stacked: bool = False

    @property
    def transposed(self) -> bool:
        """Whether the layer is a transposed convolution."""
        return self.kind.startswith("ConvTranspose")

    @property
    def flipped(self) -> bool:
        """Whether the first axis of the weight is the inputs instead of the outputs."""
        return self.kind == "Embedding" or self.transposed or self.inputs_first

    @property
    def order(self) -> int:
        """Number of spatial modes."""
        return len(self.kernel)

    @property
    def out(self) -> int:
        """Output channels per group."""
        return self.outputs // self.groups

    @property
    def in_(self) -> int:
        """Input channels per group."""
        return self.inputs // self.groups

    @property
    def kernel_shape(self) -> Sizes:
        """Shape of the canonical kernel: (groups, out, in, *kernel)."""
        return (self.groups, self.out, self.in_, *self.kernel)

    @property
    def weight_shape(self) -> Sizes:
        """Shape of the weight as torch stores it."""
        if self.stacked:
            return self.kernel_shape
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
            Sizes before the stage; for a Linear or an Embedding, positions, which do not change.
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
                f"a {self.kind} with kernel {self.kernel} has no output for an input of {sizes}"
            )
        return tuple(result)


def describe_layer(layer: nn.Module) -> LayerSpec:
    """Return the spec of a layer.

    Raises
    ------
    InvalidArgumentError
        If the layer cannot be pressed, with the reason of `refuse_layer`.

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
    """Return the spec of a layer of `KINDS` or `INPUTS_FIRST` without checking it."""
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
        If the weight has fewer than two axes.

    Examples
    --------
    >>> weight_spec((20, 10, 5, 5)).weight_shape
    (20, 10, 5, 5)
    """
    if len(shape) < 2:
        raise InvalidArgumentError(f"a weight of shape {tuple(shape)} needs at least two axes")
    outputs, inputs, *kernel = shape
    return LayerSpec(WEIGHT, inputs, outputs, kernel=tuple(kernel))


def parameter_spec(module: nn.Module, shape: Sizes) -> LayerSpec:
    """Return the spec of a weight of which only the shape is known.

    Three axes are read as a stack of matrices unless the module is a convolution, more as a kernel.

    Raises
    ------
    InvalidArgumentError
        If the weight has fewer than two axes.

    Examples
    --------
    >>> spec = parameter_spec(nn.Bilinear(3, 4, 5), (5, 3, 4))
    >>> spec.kernel_shape, spec.weight_shape
    ((5, 3, 4), (5, 3, 4))
    """
    if isinstance(module, CONVS):
        groups, (outputs, inputs, *kernel) = module.groups, shape
        return LayerSpec(WEIGHT, groups * inputs, outputs, groups, tuple(kernel))
    if len(shape) != 3:
        return weight_spec(shape)
    number, outputs, inputs = shape
    return LayerSpec(WEIGHT, number * inputs, number * outputs, number, stacked=True)


def describe_weight(module: nn.Module, key: str) -> LayerSpec:
    """Return the spec of a dense parameter: that of its layer, if the layer can be replaced.

    Parameters
    ----------
    module : nn.Module
        The module of the parameter.
    key : str
        Its name in the module.
    """
    if key == "weight" and refuse_layer(module) is None:
        return read_spec(module)
    return parameter_spec(module, tuple(module.get_parameter(key).shape))


def refuse_weight(module: nn.Module, key: str) -> str | None:
    """Return why a parameter cannot be rebuilt from factors, or None if it can.

    Examples
    --------
    >>> refuse_weight(nn.LSTM(3, 4), "weight_ih_l0")
    >>> refuse_weight(nn.Embedding(10, 4, max_norm=1.0), "weight")
    'max_norm changes its vectors at every use'
    """
    weight = module.get_parameter(key)
    if not is_plain(weight):
        return f"its weight is a {type(weight).__name__}, not a plain tensor"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    if torch.finfo(weight.dtype).bits < 16:
        return f"its weight is {weight.dtype}, a dtype for storage only: convert it first"
    if weight.numel() == 0:
        return "its weight is empty"
    if isinstance(module, NORMS):
        return "a norm has few parameters, and needs them in full precision"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript: press the original module"
    if getattr(module, "max_norm", None) is not None:
        return "max_norm changes its vectors at every use"
    return None


def refuse_layer(layer: nn.Module) -> str | None:
    """Return why a layer cannot be pressed, or None if it can.

    A layer is refused for its class, for a forward pass that overrides the one of its class, for a
    parametrized, quantized, empty or uninitialized weight, and for hooks or state that would be
    lost.

    Examples
    --------
    >>> refuse_layer(nn.Embedding(10, 4, max_norm=1.0))
    'max_norm changes its vectors at every use'
    """
    if parametrize.is_parametrized(layer):
        return "its weight is parametrized"
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin) and layer.has_uninitialized_params():
        return "it is lazy and has no shape yet: run the model once"
    kind = layer_class(layer)
    if kind is None:
        return f"only layers of these classes can be: {', '.join(k.__name__ for k in KINDS)}"
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight directly"
    if "forward" in vars(layer) or overrides_forward(layer):  # wrapped in place, or of its class
        return f"it is a {kind.__name__} with an overridden forward pass"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is not a plain parameter (weight norm or similar): remove that first"
    reason = refuse_weight(layer, "weight")
    if reason is not None:
        return reason
    others = {*layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias"}
    if others:
        return f"it also has {', '.join(map(repr, sorted(others)))}, which would be lost"
    if layer._parameters.get("bias") is None and getattr(layer, "bias", None) is not None:
        return "its bias is not a plain parameter, and would be lost"
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
    if any(hooks) or layer._backward_pre_hooks:
        return "it has hooks, which would be lost: remove them first"
    return None


def overrides_forward(layer: nn.Module) -> bool:
    """Return whether the class of a layer overrides the forward pass of its class in torch.

    Examples
    --------
    >>> class Padded(nn.Conv1d):
    ...     def forward(self, x):
    ...         return super().forward(nn.functional.pad(x, (1, 1)))
    >>> overrides_forward(Padded(2, 2, 3)), overrides_forward(nn.Conv1d(2, 2, 3))
    (True, False)
    """
    kind = layer_class(layer)
    return kind is not None and any(
        getattr(type(layer), name, None) is not getattr(kind, name, None)
        for name in ("forward", "_conv_forward")
    )


def layer_class(layer: nn.Module) -> type[nn.Module] | None:
    """Return the class of `KINDS` or `INPUTS_FIRST` that a layer derives from, or None.

    Examples
    --------
    >>> layer_class(nn.Conv2d(2, 3, 1)), layer_class(nn.Bilinear(2, 3, 4))
    (<class 'torch.nn.modules.conv.Conv2d'>, None)
    """
    for kind in type(layer).__mro__:
        if kind in KINDS or (kind.__module__, kind.__qualname__) == INPUTS_FIRST:
            return kind
    return None
