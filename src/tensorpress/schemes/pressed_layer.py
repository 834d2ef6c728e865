"""The base classes of pressed layers, which know the dense layer that they stand for."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import CorruptFileError
from tensorpress.schemes.layer_spec import LayerSpec, Sizes, kernel_to_weight
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
    relative_error : float or None
        ‖K − K̂‖ / ‖K‖ of the weight when it was decomposed; None where it was not.
    """

    spec: LayerSpec
    scheme: str
    ranks: Sizes
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

    def mistake(self) -> str | None:
        """Return what cannot be among the values, which may have come from a file; None if all can.

        Factors can be anything.
        """
        return None

    def extra_repr(self) -> str:
        """Return the scheme and its ranks as torch prints them."""
        return f"{self.scheme}, ranks={self.ranks}"


def check_read(model: nn.Module, file: str) -> None:
    """Raise a `CorruptFileError` where layers of a model that was read cannot be as they are."""
    for name, layer in model.named_modules():
        mistake = layer.mistake() if isinstance(layer, Pressed) else None
        if mistake is not None:
            raise CorruptFileError(f"{file}: layer {name!r} {mistake}")


class Composed(Pressed):
    """Base of the layers whose weight is a composition of kernels, affine in each of them."""

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

    def dense_weight(self) -> Tensor:
        """Return the composed weight: computed in the working precision, in the layer's dtype."""
        kernels = self.kernels()
        return self._weight_of(list(map(to_working_precision, kernels))).to(kernels[0].dtype)

    def composed(self) -> Tensor:
        """Return the same computed in the layer's dtype, differentiable."""
        return self._weight_of(self.kernels())

    def _weight_of(self, kernels: Sequence[Tensor]) -> Tensor:
        return kernel_to_weight(self.compose(kernels), self.spec).contiguous()
