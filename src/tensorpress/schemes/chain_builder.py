"""Builds chains of stock torch layers, with stride, padding, groups and bias."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.canonical_kernel import from_canonical, to_canonical
from tensorpress.schemes.dense_attributes import dense_attributes
from tensorpress.schemes.layer_spec import INPUTS_FIRST, WEIGHT, LayerSpec, Sizes
from tensorpress.schemes.parametrization import RankFactor
from tensorpress.schemes.pressed_layer import Composed
from tensorpress.schemes.stages import Stage, balance_kernels, compose, dense_stage


class PressedLayer(nn.Sequential, Composed):
    """A chain of stock torch layers that replaces one layer.

    Attributes
    ----------
    stages : tuple of Stage
        The shapes of the chain.

    Examples
    --------
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> spec, stages = describe_layer(nn.Linear(6, 4)), (Stage(1, 2, 6), Stage(1, 4, 2))
    >>> PressedLayer(spec, stages, scheme="channel_svd", ranks=(2,), like=torch.empty(0))
    PressedLayer(
      channel_svd, ranks=(2,)
      (0): Linear(in_features=6, out_features=2, bias=False)
      (1): Linear(in_features=2, out_features=4, bias=True)
    )
    """

    def __init__(
        self, spec: LayerSpec, stages: Sequence[Stage], *, scheme: str, ranks: Sizes, like: Tensor
    ) -> None:
        super().__init__(*build_chain(spec, stages, like=like))
        self.spec, self.stages = spec, tuple(stages)
        self.scheme, self.ranks = scheme, tuple(ranks)

    chained: ClassVar[bool] = True

    @property
    def last_places(self) -> Sizes:
        """The index of the last kernel."""
        return (len(self) - 1,)

    def bias_module(self) -> nn.Module:
        """Return the last layer."""
        return self[-1]

    def kernels(self) -> list[Tensor]:
        """Return the canonical kernels of the chain, first to last, as views of its weights."""
        return [
            to_canonical(plain_weight(layer), stage.groups, flipped=_is_flipped(layer))
            for layer, stage in zip(self, self.stages, strict=True)
        ]

    def put(self, kernels: Sequence[Tensor]) -> None:
        """Copy canonical kernels into the chain."""
        fill_chain(list(self), kernels)

    def rank_factors(self) -> list[RankFactor]:
        """Return the kernels; neighbours share a rank, or all share one in a scheme of one rank."""
        last, groups = len(self) - 1, self.spec.groups
        factors = []
        for number, (kernel, stage) in enumerate(zip(self.kernels(), self.stages, strict=True)):
            inner = stage.groups // groups
            ranks = {1: number} if number < last else {}
            if inner > 1:  # depthwise: the rank is the number of channels
                kernel = kernel.reshape(groups, inner, *kernel.shape[3:])
            elif number > 0:
                ranks[2] = number - 1
            if len(self.ranks) == 1:
                ranks = dict.fromkeys(ranks, 0)
            factors.append(RankFactor(kernel.detach(), ranks))
        return factors

    def balance(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """Scale the kernels to equal norms, without changing their product."""
        return balance_kernels(kernels)

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return the product of the kernels of a chain."""
        return compose(kernels, self.spec.groups)


class PressedTransposed(PressedLayer):
    """A chain that replaces a transposed convolution, and takes its ``output_size``."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        """Map (*, inputs, *sizes) to (*, outputs, *sizes), as torch's layer does.

        Parameters
        ----------
        input : Tensor
            The input.
        output_size : list of int, optional
            Spatial sizes of the output, with or without the axes before them. Every transposed
            layer of the chain sets the sizes of the spatial modes that it covers.

        Raises
        ------
        ValueError
            If the layer cannot give an output of this size.
        """
        order = len(self.kernel_size)  # type: ignore[arg-type]
        if output_size is not None and len(output_size) < order:
            raise ValueError("output_size has fewer axes than the kernel")
        result = input
        for layer in self:
            # TorchScript compiles the loop layer by layer, and only transposed ones take sizes.
            if hasattr(layer, "_output_padding"):
                sizes: list[int] | None = None
                if output_size is not None:
                    sizes = list(output_size)[-order:]
                    for mode, size in enumerate(result.shape[-order:]):
                        # TorchScript accepts neither casts of these attributes nor a comment
                        # that names both mypy errors.
                        if layer.kernel_size[mode] == 1 and layer.stride[mode] == 1:  # type: ignore[index]
                            sizes[mode] = size - 2 * layer.padding[mode]  # type: ignore
                result = layer(result, sizes)
            else:
                result = layer(result)
        if output_size is not None and list(output_size)[-order:] != list(result.shape[-order:]):
            raise ValueError("the layer cannot give an output of this output_size")
        return result


class PressedFlattened(PressedLayer):
    """A chain of convolutions that replaces a Linear on a flattened feature map.

    Parameters
    ----------
    spec : LayerSpec
        The Linear.
    view : LayerSpec
        The same weight as a convolution whose kernel is as large as the map.
    stages, scheme, ranks, like
        As for `PressedLayer`, of the convolution.
    """

    chained: ClassVar[bool] = False  # its kernels do not compose to that of the Linear

    def __init__(
        self,
        spec: LayerSpec,
        view: LayerSpec,
        stages: Sequence[Stage],
        *,
        scheme: str,
        ranks: Sizes,
        like: Tensor,
    ) -> None:
        super().__init__(view, stages, scheme=scheme, ranks=ranks, like=like)
        self.map_shape = (view.inputs, *view.kernel)
        for name in dense_attributes(view):
            delattr(self, name)
        self.spec = spec

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Map (*, inputs) to (*, outputs), as torch's Linear does."""
        result = input.reshape(-1, *self.map_shape)
        for layer in self:
            result = layer(result)
        return result.reshape(input.shape[:-1] + (self.spec.outputs,))  # noqa: RUF005, for torch.fx

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return the kernel of the Linear, (1, outputs, inputs)."""
        return super().compose(kernels).flatten(2)


def build_chain(spec: LayerSpec, stages: Sequence[Stage], *, like: Tensor) -> list[nn.Module]:
    """Return uninitialized stock layers for the stages.

    Every stage has the stride, padding, padding mode, dilation and output padding of the spatial
    modes that it covers, and stride 1, padding 0 and dilation 1 in all others. The last stage has
    the bias.

    Parameters
    ----------
    spec : LayerSpec
        The dense layer.
    stages : sequence of Stage
        The shapes of the chain.
    like : Tensor
        Gives device and dtype.

    Examples
    --------
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> spec = describe_layer(nn.Conv2d(8, 16, 3, stride=(2, 1), padding=1))
    >>> build_chain(spec, [Stage(1, 4, 8, (0,)), Stage(1, 16, 4, (1,))], like=torch.empty(0))
    ... # doctest: +NORMALIZE_WHITESPACE
    [Conv2d(8, 4, kernel_size=(3, 1), stride=(2, 1), padding=(1, 0), bias=False),
     Conv2d(4, 16, kernel_size=(1, 3), stride=(1, 1), padding=(0, 1))]
    """
    last = len(stages) - 1
    return [
        _layer(spec, stage, first=number == 0, bias=spec.bias and number == last, like=like)
        for number, stage in enumerate(stages)
    ]


def dense_layer(spec: LayerSpec, *, like: Tensor) -> nn.Module:
    """Return the uninitialized dense layer of a spec; for `WEIGHT`, a module with just a weight.

    Examples
    --------
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> dense_layer(describe_layer(nn.Linear(3, 2)), like=torch.empty(0))
    Linear(in_features=3, out_features=2, bias=True)
    """
    if spec.kind == WEIGHT:
        layer = nn.Module()
        layer.weight = nn.Parameter(like.new_empty(spec.weight_shape))
        return layer
    if spec.inputs_first:
        return _inputs_first(spec, like=like)
    return build_chain(spec, [dense_stage(spec)], like=like)[0]


@torch.no_grad()
def fill_chain(layers: Sequence[nn.Module], kernels: Sequence[Tensor]) -> None:
    """Copy canonical kernels into the layers of a chain."""
    for layer, kernel in zip(layers, kernels, strict=True):
        plain_weight(layer).copy_(from_canonical(kernel, flipped=_is_flipped(layer)))


def _layer(spec: LayerSpec, stage: Stage, *, first: bool, bias: bool, like: Tensor) -> nn.Module:
    kind: type[nn.Module] = nn.Linear
    options: dict[str, Any] = {"bias": bias}
    if spec.kind == "Embedding" and first:
        kind = nn.Embedding
        options = {
            key: getattr(spec, key) for key in ("padding_idx", "sparse", "scale_grad_by_freq")
        }
    elif spec.order:
        kind, geometry = _convolution(spec, stage)
        options |= geometry
    inputs, outputs = stage.groups * stage.in_, stage.groups * stage.out
    # A subclass skips the random initialization, which takes time and random numbers.
    empty = type(kind.__name__, (kind,), {"reset_parameters": lambda _: None})
    layer: nn.Module = empty(inputs, outputs, **options, device=like.device, dtype=like.dtype)
    layer.__class__ = kind
    return layer


def _inputs_first(spec: LayerSpec, *, like: Tensor) -> nn.Module:
    """Return an uninitialized Conv1D of transformers."""
    module, name = INPUTS_FIRST
    try:
        kind = getattr(import_module(module), name)
    except ImportError as error:
        raise InvalidArgumentError(
            f"a layer of class {module}.{name} needs the package transformers"
        ) from error
    with torch.device("meta"):
        layer: nn.Module = kind(spec.outputs, spec.inputs)
    return layer.to(like.dtype).to_empty(device=like.device)


def _convolution(spec: LayerSpec, stage: Stage) -> tuple[type[nn.Module], dict[str, Any]]:
    """Return the class and the geometry of a stage; a stage that covers no mode is a plain 1×1."""

    def per_mode(values: Sizes, other: int) -> Sizes:
        return tuple(v if m in stage.modes else other for m, v in enumerate(values))

    name = spec.kind if stage.modes else spec.kind.replace("Transpose", "")
    kind: type[nn.Module] = getattr(nn, name)
    options: dict[str, Any] = {"kernel_size": stage.kernel(spec), "groups": stage.groups}
    if not stage.modes:
        return kind, options
    options |= {
        "stride": per_mode(spec.stride, 1),
        "padding": "same" if spec.padding == "same" else per_mode(spec.padding, 0),
        "dilation": per_mode(spec.dilation, 1),
        "padding_mode": spec.padding_mode,
    }
    if spec.transposed:
        options["output_padding"] = per_mode(spec.output_padding, 0)
    return kind, options


def plain_weight(layer: nn.Module) -> Tensor:
    """Return the weight of a stock layer, dequantized if it was quantized after pressing."""
    weight = layer.weight
    if not isinstance(weight, Tensor):  # the method of a layer of torch.ao.quantization
        weight = weight().dequantize()
    elif type(weight).dequantize is not Tensor.dequantize:  # a tensor of torchao
        weight = weight.dequantize()
    assert isinstance(weight, Tensor)
    return weight


def _is_flipped(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding) or getattr(layer, "transposed", False)
