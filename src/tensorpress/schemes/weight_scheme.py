"""Base of the schemes in weight form: the layer stays, and its weight is rebuilt from factors."""

from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from typing import ClassVar, Literal

from torch import Tensor, nn

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.schemes.canonical_kernel import kernel_to_weight
from tensorpress.schemes.chain_builder import dense_layer
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.parametrization import FactorizedWeight
from tensorpress.schemes.scheme import Scheme
from tensorpress.schemes.stages import dense_macs


class WeightScheme(Scheme):
    """A scheme whose pressed layer is the layer itself with a `parametrization` of its weight."""

    form: ClassVar[Literal["layer", "weight"]] = "weight"

    @abstractmethod
    def parametrization(self, spec: LayerSpec, ranks: Sizes) -> FactorizedWeight:
        """Return the module that rebuilds the weight of a layer."""

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the number of entries of the factors and the bias."""
        return self.parametrization(spec, ranks).num_params + spec.outputs * spec.bias

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the MACs of the dense layer: the weight is rebuilt once for all examples."""
        return dense_macs(spec, sizes)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> nn.Module:
        """Return the dense layer with uninitialized factors."""
        layer, form = dense_layer(spec, like=like), self._form(spec, ranks)
        form.attach(layer, tuple(like.new_empty(shape) for shape in form.factor_shapes))
        return layer

    def decompose(
        self,
        layer: nn.Module,
        spec: LayerSpec,
        kernel: Tensor,
        ranks: Sizes,
        spectra: Sequence[Spectrum],
    ) -> nn.Module:
        """Return a copy of the layer with the factors of its weight."""
        pressed, form = deepcopy(layer), self._form(spec, ranks)
        factors = form.decompose(kernel_to_weight(kernel, spec))
        weight = layer.get_parameter("weight")
        form.attach(pressed, tuple(factor.to(weight) for factor in factors))
        return pressed

    def _form(self, spec: LayerSpec, ranks: Sizes) -> FactorizedWeight:
        form = self.parametrization(spec, ranks)
        form.scheme, form.options, form.spec = self.name, self.options, spec
        return form
