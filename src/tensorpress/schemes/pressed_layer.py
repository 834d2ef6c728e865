"""Base classes of pressed layers, which know the dense layer they stand for."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import CorruptFileError
from tensorpress.schemes.canonical_kernel import kernel_to_weight
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.options import NO_OPTIONS, Options
from tensorpress.schemes.parametrization import FactorizedWeight, RankFactor, factorized_weight
from tensorpress.utils.lazy_tensor import defer


class Pressed(nn.Module):
    """Base of the modules that stand in the place of one dense layer.

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

    @property
    def weight(self) -> Tensor:
        """The dense weight, for modules around this one that read it.

        It is composed when its values are used; its dtype and device are known without.
        """
        if torch.compiler.is_compiling():
            return self.compose_weight()
        return defer(self.compose_weight, like=next(self.parameters()))

    def compose_weight(self) -> Tensor:
        """Return the dense weight as a differentiable function of the factors, in their dtype."""
        return self.dense_weight()

    def dense_weight(self) -> Tensor:
        """Return the dense weight, as torch stores it."""
        raise NotImplementedError

    def bias_parameter(self) -> nn.Parameter | None:
        """Return the bias, None where the layer has none."""
        return self._parameters.get("bias")

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


def pressed_form(module: nn.Module) -> Pressed | FactorizedWeight | None:
    """Return the module that records how a layer is pressed, None where the layer is dense.

    It is the layer itself, or in weight form the parametrization of its weight.
    """
    return module if isinstance(module, Pressed) else factorized_weight(module)


def weight_shape(module: nn.Module) -> Sizes | None:
    """Return the shape of a layer's dense weight, None where the layer has no weight."""
    form = pressed_form(module)
    if form is not None:
        return form.spec.weight_shape if isinstance(form, Pressed) else form.shape
    weight = module._parameters.get("weight")
    return None if weight is None else tuple(weight.shape)


def layer_bias(pressed: nn.Module) -> nn.Parameter | None:
    """Return the bias of a layer pressed in either form, None where it has none."""
    if isinstance(pressed, Pressed):
        return pressed.bias_parameter()
    return pressed._parameters.get("bias")


def layer_factors(pressed: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a pressed layer without its bias."""
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

    def _compose_weight(self, kernels: Sequence[Tensor]) -> Tensor:
        return kernel_to_weight(self.compose(kernels), self.spec).contiguous()
