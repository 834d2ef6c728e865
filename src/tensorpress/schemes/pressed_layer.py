"""The base classes of pressed layers, which know the dense layer that they stand for."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import CorruptFileError
from tensorpress.schemes.layer_spec import LayerSpec, Sizes, kernel_to_weight
from tensorpress.schemes.parametrization import (
    NO_OPTIONS,
    FactorizedWeight,
    Options,
    RankFactor,
    factorized_weight,
)
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
        Its ranks, in the order of the scheme's paper.
    options : mapping
        Options of the scheme that are not at their defaults.
    relative_error : float or None
        ‖K − K̂‖ / ‖K‖ of the weight when it was decomposed; None where it was not.
    """

    spec: LayerSpec
    scheme: str
    ranks: Sizes
    options: Options = NO_OPTIONS
    relative_error: float | None = None

    @property
    def weight(self) -> Tensor:
        """The dense weight, for modules around this one that read it; composed whenever it is used.

        Its dtype and device are there without that.
        """
        if torch.compiler.is_compiling():
            return self.composed()
        return defer(self.composed, like=next(self.parameters()))

    def composed(self) -> Tensor:
        """Return the dense weight as a differentiable function of the factors, in their dtype."""
        return self.dense_weight()

    def dense_weight(self) -> Tensor:
        """Return the weight, as torch holds it, that this stands for."""
        raise NotImplementedError

    def held_bias(self) -> nn.Parameter | None:
        """Return the bias, where there is one."""
        raise NotImplementedError

    def rank_factors(self) -> list[RankFactor]:
        """Return the factors with the ranks that their axes are; none where that is not known.

        Ranks whose slices are zero can then be dropped; see `tensorpress.drop_zero_ranks`.
        """
        return []

    def put_rank_factors(self, values: Sequence[Tensor]) -> None:
        """Copy in the values of what `rank_factors` returns, of these ranks."""
        raise NotImplementedError

    def mistake(self) -> str | None:
        """Return what cannot be among the values, which may have come from a file; None if all can.

        Factors can be anything.
        """
        return None

    def extra_repr(self) -> str:
        """Return the scheme and its ranks as torch prints them."""
        return f"{self.scheme}, ranks={self.ranks}"


def pressed_form(module: nn.Module) -> Pressed | FactorizedWeight | None:
    """Return what knows how a layer is pressed: itself, or what rebuilds its weight, or None."""
    return module if isinstance(module, Pressed) else factorized_weight(module)


def weight_shape(module: nn.Module) -> Sizes | None:
    """Return the shape of a layer's dense weight, pressed or not; None where it has none."""
    form = pressed_form(module)
    if form is not None:
        return form.spec.weight_shape if isinstance(form, Pressed) else form.shape
    weight = module._parameters.get("weight")
    return None if weight is None else tuple(weight.shape)


def check_read(model: nn.Module, file: str) -> None:
    """Raise a `CorruptFileError` where layers of a model that was read cannot be as they are."""
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
        return self.held_bias()

    @property
    def last_places(self) -> Sizes:
        """Which of the kernels put out what the layer puts out."""
        raise NotImplementedError

    def kernels(self) -> list[Tensor]:
        """Return the canonical kernels, views of the weights."""
        raise NotImplementedError

    def put(self, kernels: Sequence[Tensor]) -> None:
        """Copy canonical kernels into the weights."""
        raise NotImplementedError

    def balanced(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """Return kernels that stand for the same, at scales that suit training."""
        raise NotImplementedError

    def compose(self, kernels: Sequence[Tensor]) -> Tensor:
        """Return what kernels stand for, (groups, out, in, *kernel), in their dtype."""
        raise NotImplementedError

    def selection(self) -> Tensor | None:
        """Return the input channels of the first kernel, (groups, number); None where it has all.

        Kernels after it are then the factors of a matrix that is added.
        """
        return None

    def select(self, channels: Tensor) -> None:
        """Choose the input channels of the first kernel, where it has a choice."""
        raise NotImplementedError

    def put_rank_factors(self, values: Sequence[Tensor]) -> None:
        """Copy in kernels, of any shapes with as many entries."""
        pairs = zip(values, self.kernels(), strict=True)
        self.put([value.reshape(kernel.shape) for value, kernel in pairs])

    def dense_weight(self) -> Tensor:
        """Return the composed weight: computed in the working precision, in the layer's dtype."""
        kernels = self.kernels()
        return self._weight_of(list(map(to_working_precision, kernels))).to(kernels[0].dtype)

    def composed(self) -> Tensor:
        """Return the same computed in the layer's dtype, differentiable."""
        return self._weight_of(self.kernels())

    def _weight_of(self, kernels: Sequence[Tensor]) -> Tensor:
        return kernel_to_weight(self.compose(kernels), self.spec).contiguous()
