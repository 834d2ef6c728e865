"""Base classes of pressed layers, which know the dense layer they stand for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.schemes.canonical_kernel import kernel_to_weight, weight_to_kernel
from tensorpress.schemes.dense_attributes import dense_attributes
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.options import NO_OPTIONS, Options
from tensorpress.schemes.parametrization import (
    FactorizedWeight,
    RankFactor,
    factorized_weight,
    factorized_weights,
    stored_factors,
)
from tensorpress.utils.lazy_tensor import defer


class Pressed(nn.Module):
    """Base of the modules that stand in the place of one dense layer.

    They have the public attributes of that layer as well, such as ``in_features`` or ``stride``.

    Attributes
    ----------
    spec : LayerSpec
        The dense layer.
    scheme : str
        Name of the scheme.
    ranks : tuple of int
        Ranks, in the order of the scheme's paper.
    options : mapping
        Options of the scheme that are not at their defaults.
    relative_error : float or None
        ‖K − K̂‖ / ‖K‖ of the weight when it was decomposed; None where it was not.
    unfitted : str or None
        Why it starts from its weight alone where other layers were fitted to calibration data; None
        where it does not.
    """

    spec: LayerSpec
    scheme: str
    ranks: Sizes
    options: Options = NO_OPTIONS
    relative_error: float | None = None
    unfitted: str | None = None

    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "bias", "last_places"]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a spec brings those of its layer, weight and bias go to the factors."""
        if name == "weight":
            self.put_weight(value)
        elif name == "bias":
            self.put_bias(value)
        else:
            if name == "spec":
                vars(self).update(dense_attributes(value))
            super().__setattr__(name, value)

    @property
    def weight(self) -> Tensor:
        """The dense weight, for modules around this one that read it.

        It is composed when its values are used; its dtype and device are known without.
        """
        if torch.compiler.is_compiling():
            return self.compose_weight()
        like = next(self.parameters(), torch.empty(0))  # none where all factors are quantized
        return defer(self.compose_weight, like=like, refusal=self._refusal())

    def put_weight(self, weight: Tensor) -> None:
        """Take a weight that is assigned to the layer.

        Raises
        ------
        InvalidArgumentError
            If the factors do not stand for such a weight.
        """
        raise InvalidArgumentError(self._refusal())

    def _refusal(self) -> str:
        return (
            f"the weight of a {self.spec.kind} pressed by {self.scheme} is composed of its factors "
            "and cannot be changed: change it, or fold batch norms into it, before pressing, or "
            "make the layer dense again by tensorpress.unpress"
        )

    def compose_weight(self) -> Tensor:
        """Return the dense weight as a differentiable function of the factors, in their dtype."""
        return self.dense_weight()

    def dense_weight(self) -> Tensor:
        """Return the dense weight, as torch stores it."""
        raise NotImplementedError

    def bias_parameter(self) -> nn.Parameter | None:
        """Return the bias, None where the layer has none."""
        return self.bias_module()._parameters.get("bias")

    def bias_module(self) -> nn.Module:
        """Return the module whose parameter ``bias`` is that of the layer."""
        return self

    def put_bias(self, bias: nn.Parameter | None) -> None:
        """Take a bias that is assigned to the layer, which may have had none.

        Raises
        ------
        InvalidArgumentError
            For a bias of another shape.
        """
        if bias is not None and tuple(bias.shape) != (self.spec.outputs,):
            raise InvalidArgumentError(
                f"this layer needs a bias of shape ({self.spec.outputs},), got {tuple(bias.shape)}"
            )
        self.bias_module().register_parameter("bias", bias)
        self.spec = replace(self.spec, bias=bias is not None)

    def rank_factors(self) -> list[RankFactor]:
        """Return the factors with the ranks of their axes, nothing where the ranks are unknown.

        Ranks whose slices are zero can then be dropped; see `tensorpress.drop_zero_ranks`.
        """
        return []

    def put_rank_factors(self, values: Sequence[Tensor]) -> None:
        """Copy in values of the factors that `rank_factors` returns."""
        raise NotImplementedError

    def mistake(self) -> str | None:
        """Return why values that may come from a file cannot be, None where they can."""
        return None

    def extra_repr(self) -> str:
        """Return the scheme and its ranks as torch prints them."""
        return f"{self.scheme}, ranks={self.ranks}"


def pressed_form(module: nn.Module, key: str = "weight") -> Pressed | FactorizedWeight | None:
    """Return the module that records how a layer is pressed, None where the layer is dense.

    It is the layer itself, or in weight form the parametrization of its weight, which is named.
    """
    return module if isinstance(module, Pressed) else factorized_weight(module, key)


def pressed_forms(module: nn.Module) -> dict[str, Pressed | FactorizedWeight]:
    """Return all modules that record how weights of a layer are pressed, by their names."""
    return {"weight": module} if isinstance(module, Pressed) else {**factorized_weights(module)}


def weight_shape(module: nn.Module, key: str = "weight") -> Sizes | None:
    """Return the shape of a layer's dense weight, None where the layer has no weight."""
    form = pressed_form(module, key)
    if form is not None:
        return form.spec.weight_shape if isinstance(form, Pressed) else form.shape
    weight = module._parameters.get(key)
    return None if weight is None else tuple(weight.shape)


def layer_bias(pressed: nn.Module) -> nn.Parameter | None:
    """Return the bias of a layer pressed in either form, None where it has none."""
    if isinstance(pressed, Pressed):
        return pressed.bias_parameter()
    return pressed._parameters.get("bias")


def layer_factors(pressed: nn.Module, key: str = "weight") -> list[nn.Parameter]:
    """Return the factors of a weight of a pressed layer."""
    if factorized_weight(pressed, key) is not None:
        return list(stored_factors(pressed, key).parameters())
    bias = layer_bias(pressed)
    return [parameter for parameter in pressed.parameters() if parameter is not bias]


def copy_bias(bias: Tensor | None, pressed: nn.Module) -> None:
    """Copy a bias, where there is one, into a pressed layer."""
    target = layer_bias(pressed)
    if target is not None and bias is not None:
        target.data.copy_(bias)


def copy_requires_grad(layer: nn.Module, pressed: nn.Module) -> None:
    """Let factors and bias require gradients as the layer's weight and bias do."""
    pressed.requires_grad_(layer.get_parameter("weight").requires_grad)
    target, bias = layer_bias(pressed), layer._parameters.get("bias")
    if target is not None and bias is not None:
        target.requires_grad_(bias.requires_grad)


def check_read(model: nn.Module, file: str) -> None:
    """Raise a `CorruptFileError` if a layer of a model read from a file has a `mistake`."""
    for name, layer in model.named_modules():
        mistake = layer.mistake() if isinstance(layer, Pressed) else None
        if mistake is not None:
            raise CorruptFileError(f"{file}: layer {name!r} {mistake}")


class Composed(Pressed):
    """Base of the layers whose weight is a composition of kernels, affine in each of them.

    Attributes
    ----------
    chained : bool
        Whether the kernels are those of a chain of layers.
    """

    chained: ClassVar[bool] = False

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, for modules around this one that read it."""
        return self.bias_parameter()

    @property
    def last_places(self) -> Sizes:
        """Indices of the kernels whose outputs are those of the layer."""
        raise NotImplementedError

    def kernels(self) -> list[Tensor]:
        """Return the canonical kernels, views of the weights."""
        raise NotImplementedError

    def put(self, kernels: Sequence[Tensor]) -> None:
        """Copy canonical kernels into the weights."""
        raise NotImplementedError

    def balance(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """Scale kernels as suits training, such that they stand for the same kernel."""
        raise NotImplementedError

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return the kernel (groups, out, in, *kernel) that kernels stand for, in their dtype."""
        raise NotImplementedError

    def selection(self) -> Tensor | None:
        """Return the input channels of the first kernel, (groups, number), None where it has all.

        The other kernels are then the factors of a matrix that is added.
        """
        return None

    def select(self, channels: Tensor) -> None:
        """Choose the input channels of the first kernel: (groups, number), from 0 in each group."""
        raise NotImplementedError

    def put_rank_factors(self, values: Sequence[Tensor]) -> None:
        """Copy in kernels, of any shapes with as many entries."""
        pairs = zip(values, self.kernels(), strict=True)
        self.put([value.reshape(kernel.shape) for value, kernel in pairs])

    def dense_weight(self) -> Tensor:
        """Return the weight, computed in the working precision, in the layer's dtype."""
        kernels = self.kernels()
        return self._compose_weight(list(map(to_working_precision, kernels))).to(kernels[0].dtype)

    def compose_weight(self) -> Tensor:
        """Return the weight, computed in the layer's dtype, differentiable."""
        return self._compose_weight(self.kernels())

    def put_weight(self, weight: Tensor) -> None:
        """Take a weight that is the layer's but for a scale of every output channel.

        Folding a batch norm makes such a weight: the kernels of `last_places` are scaled.

        Raises
        ------
        InvalidArgumentError
            For any other weight.
        """
        kernels = self.kernels()
        before = self.compose(list(map(to_working_precision, kernels))).flatten(2)
        if weight.shape != self.spec.weight_shape:
            super().put_weight(weight)
        after = to_working_precision(weight_to_kernel(weight.detach(), self.spec)).flatten(2)
        # The scales s that minimize ‖W' − diag(s) W‖.
        energies = before.square().sum(2)
        scales = (after * before).sum(2) / energies.where(energies > 0, 1)
        distance = (after - scales[..., None] * before).norm()
        if distance > _tolerance(weight.dtype) * after.norm():
            super().put_weight(weight)
        for place in self.last_places:
            kernel = kernels[place]
            shape = (*kernel.shape[:2], *(1,) * (kernel.ndim - 2))
            kernels[place] = kernel * scales.reshape(shape).to(kernel.dtype)
        self.put(kernels)

    def _compose_weight(self, kernels: Sequence[Tensor]) -> Tensor:
        return kernel_to_weight(self.compose(kernels), self.spec).contiguous()


def _tolerance(dtype: torch.dtype) -> float:
    """Return the relative difference by which rounding may change a composed weight."""
    return max(1e-3, 4 * torch.finfo(dtype).eps)
