"""What layers have in common that torch's own layers make up: kernels, and what they stand for."""

from collections.abc import Sequence

from torch import Tensor, nn

from tensorpress.decompose.precision import working
from tensorpress.schemes.layer import Sizes, weight_of
from tensorpress.schemes.pressed import Pressed


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
        return self._weight_of(list(map(working, kernels))).to(kernels[0].dtype)

    def composed(self) -> Tensor:
        """Return the same computed in the layer's dtype, differentiable."""
        return self._weight_of(self.kernels())

    def _weight_of(self, kernels: Sequence[Tensor]) -> Tensor:
        return weight_of(self.compose(kernels), self.spec).contiguous()
