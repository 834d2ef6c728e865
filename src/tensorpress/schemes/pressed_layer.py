"""Base classes of pressed layers, which know the dense layer that they replace."""

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
    """Base of the modules that replace one dense layer.

    They also have the public attributes of that layer, such as ``in_features`` or ``stride``.

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
        ‖K − K̂‖ / ‖K‖ of the weight when it was decomposed; None if it was not.
    unfitted : str or None
        Why the layer was not fitted to calibration data; None if it was, or there were none.
    """

    spec: LayerSpec
    scheme: str
    ranks: Sizes
    options: Options = NO_OPTIONS
    relative_error: float | None = None
    unfitted: str | None = None

    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "bias", "last_places"]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a spec sets the dense attributes as well."""
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
        """The dense weight, for other modules that read it; it is composed when values are used."""
        if torch.compiler.is_compiling():
            return self.compose_weight()
        like = next(self.parameters(), torch.empty(0))  # none where all factors are quantized
        return defer(self.compose_weight, like=like, refusal=self._refusal())

    def put_weight(self, weight: Tensor) -> None:
        """Set the weight of the layer.

        Raises
        ------
        InvalidArgumentError
            If the factors cannot represent the weight.
        """
        raise InvalidArgumentError(self._refusal())

    def _refusal(self) -> str:
        return (
            f"the weight of a {self.spec.kind} pressed by {self.scheme} is composed of factors "
            "and cannot be set: change it, or fold batch norms into it, before pressing, or make "
            "the layer dense again by tensorpress.unpress"
        )

    def compose_weight(self) -> Tensor:
        """Return the dense weight as a differentiable function of the factors, in their dtype."""
        return self.dense_weight()

    def dense_weight(self) -> Tensor:
        """Return the dense weight, as torch stores it."""
        raise NotImplementedError

    def bias_parameter(self) -> nn.Parameter | None:
        """Return the bias, or None."""
        return self.bias_module()._parameters.get("bias")

    def bias_module(self) -> nn.Module:
        """Return the module that has the layer's ``bias`` as a parameter."""
        return self

    def put_bias(self, bias: nn.Parameter | None) -> None:
        """Set the bias of the layer; None removes it.

        Raises
        ------
        InvalidArgumentError
            If the bias has another shape.
        """
        if bias is not None and tuple(bias.shape) != (self.spec.outputs,):
            raise InvalidArgumentError(
                f"this layer needs a bias of shape ({self.spec.outputs},), got {tuple(bias.shape)}"
            )
        self.bias_module().register_parameter("bias", bias)
        self.spec = replace(self.spec, bias=bias is not None)

    def rank_factors(self) -> list[RankFactor]:
        """Return the factors with the ranks of their axes, or nothing if these are unknown.

        `tensorpress.drop_zero_ranks` uses them to drop ranks whose slices are zero.
        """
        return []

    def put_rank_factors(self, values: Sequence[Tensor]) -> None:
        """Copy in values of the factors that `rank_factors` returns."""
        raise NotImplementedError

    def mistake(self) -> str | None:
        """Return an error message if values read from a file are invalid, else None."""
        return None

    def extra_repr(self) -> str:
        """Return the scheme and the ranks for torch's representation."""
        return f"{self.scheme}, ranks={self.ranks}"


def pressed_form(module: nn.Module, key: str = "weight") -> Pressed | FactorizedWeight | None:
    """Return the module that records how a layer is pressed, or None if the layer is dense.

    It is the layer itself, or in weight form the parametrization of the weight ``key``.
    """
    return module if isinstance(module, Pressed) else factorized_weight(module, key)


def pressed_forms(module: nn.Module) -> dict[str, Pressed | FactorizedWeight]:
    """Return all modules that record how weights of a layer are pressed, by weight name."""
    return {"weight": module} if isinstance(module, Pressed) else {**factorized_weights(module)}


def weight_shape(module: nn.Module, key: str = "weight") -> Sizes | None:
    """Return the shape of a layer's dense weight, or None if the layer has no weight."""
    form = pressed_form(module, key)
    if form is not None:
        return form.spec.weight_shape if isinstance(form, Pressed) else form.shape
    weight = module._parameters.get(key)
    return None if weight is None else tuple(weight.shape)


def layer_bias(pressed: nn.Module) -> nn.Parameter | None:
    """Return the bias of a layer pressed in either form, or None."""
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
    """Copy a bias, if there is one, into a pressed layer."""
    target = layer_bias(pressed)
    if target is not None and bias is not None:
        target.data.copy_(bias)


def copy_requires_grad(layer: nn.Module, pressed: nn.Module) -> None:
    """Make factors and bias require gradients if the layer's weight and bias do."""
    pressed.requires_grad_(layer.get_parameter("weight").requires_grad)
    target, bias = layer_bias(pressed), layer._parameters.get("bias")
    if target is not None and bias is not None:
        target.requires_grad_(bias.requires_grad)


def check_read(model: nn.Module, file: str) -> None:
    """Raise a `CorruptFileError` if a layer read from a file has invalid values."""
    for name, layer in model.named_modules():
        mistake = layer.mistake() if isinstance(layer, Pressed) else None
        if mistake is not None:
            raise CorruptFileError(f"{file}: layer {name!r} {mistake}")


class Composed(Pressed):
    """Base of the layers whose weight is a composition of kernels, affine in each of them.

    Attributes
    ----------
    chained : bool
        Whether the kernels form a chain.
    """

    chained: ClassVar[bool] = False

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, for other modules that read it."""
        return self.bias_parameter()

    @property
    def last_places(self) -> Sizes:
        """Indices of the kernels that give the outputs of the layer."""
        raise NotImplementedError

    def kernels(self) -> list[Tensor]:
        """Return the canonical kernels as views of the weights."""
        raise NotImplementedError

    def put(self, kernels: Sequence[Tensor]) -> None:
        """Copy canonical kernels into the weights."""
        raise NotImplementedError

    def balance(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """Scale kernels as suits training, without changing the composed kernel."""
        raise NotImplementedError

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return the composed kernel (groups, out, in, *kernel), in the kernels' dtype."""
        raise NotImplementedError

    def selection(self) -> Tensor | None:
        """Return the input channels of the first kernel, (groups, number), or None for all.

        The other kernels are then the factors of a matrix that is added.
        """
        return None

    def select(self, channels: Tensor) -> None:
        """Choose the input channels of the first kernel, (groups, number), from 0 in each group."""
        raise NotImplementedError

    def put_rank_factors(self, values: Sequence[Tensor]) -> None:
        """Copy in kernels, reshaped as needed."""
        pairs = zip(values, self.kernels(), strict=True)
        self.put([value.reshape(kernel.shape) for value, kernel in pairs])

    def dense_weight(self) -> Tensor:
        """Return the weight in the layer's dtype, computed in the working precision."""
        kernels = self.kernels()
        return self._compose_weight(list(map(to_working_precision, kernels))).to(kernels[0].dtype)

    def compose_weight(self) -> Tensor:
        """Return the weight, computed in the layer's dtype, differentiable."""
        return self._compose_weight(self.kernels())

    def put_weight(self, weight: Tensor) -> None:
        """Set a weight that differs from the present one only by a scale per output channel.

        Folding a batch norm makes such a weight. The kernels of `last_places` are scaled.

        Raises
        ------
        InvalidArgumentError
            If the weight differs otherwise.
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
    """Return the relative change of a composed weight that rounding explains."""
    return max(1e-3, 4 * torch.finfo(dtype).eps)
