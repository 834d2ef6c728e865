"""Factors of Linear layers that raise the loss least, by its curvature."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.loss_curvature import LossCurvature
from tensorpress.reconstruct.weighted_svd import decompose_layer
from tensorpress.schemes.canonical_kernel import weight_to_kernel
from tensorpress.schemes.initialization import StartValues, decompose_weight, factor_values
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.pressed_layer import Composed

logger = logging.getLogger("tensorpress.press")


@dataclass(frozen=True)
class CurvatureFit:
    """Fits the two factors of every Linear by the curvature of the loss.

    Attributes
    ----------
    curvature : LossCurvature
        The curvature of the dense model.
    batches : sequence of Batch
        Always empty: the model does not run again.
    """

    curvature: LossCurvature
    batches: Sequence[Batch] = ()

    def values(
        self,
        model: nn.Module,
        layers: Sequence[LayerPlan],
        weight_of: Callable[[LayerPlan], Tensor],
    ) -> Iterator[tuple[LayerPlan, StartValues]]:
        """Yield every layer with its factors, decomposed by weight where no curvature is known."""
        for layer in layers:
            weight = weight_of(layer)
            pressed = layer.method.skeleton(layer.spec, layer.ranks, like=weight)
            if layer.name not in self.curvature.gradients:
                reason = "the curvature of the loss does not cover it"
            elif not isinstance(pressed, Composed) or len(layer.ranks) != 1 or not pressed.chained:
                reason = f"{layer.scheme} has no two factors"
            else:
                bias = model.get_submodule(layer.name)._parameters.get("bias")
                yield layer, fit_factors(self.curvature, layer, weight, bias, pressed)
                continue
            logger.warning(
                "layer %s: decomposed by its weight alone, because %s", layer.name, reason
            )
            yield layer, replace(decompose_weight(layer, weight), unfitted=reason)


def fit_factors(
    curvature: LossCurvature,
    layer: LayerPlan,
    weight: Tensor,
    bias: Tensor | None,
    pressed: Composed,
) -> StartValues:
    """Return the factors of a layer by the curvature of the loss.

    Parameters
    ----------
    curvature : LossCurvature
        The curvature, which must cover this layer.
    layer : LayerPlan
        The plan of a Linear that becomes a chain of two.
    weight, bias : Tensor
        Weight and bias of the dense layer, as torch stores them; None without a bias.
    pressed : Composed
        The skeleton of the pressed layer, which receives the kernels.
    """
    dense = weight_to_kernel(weight, layer.spec)[0].double()
    svd = decompose_layer(curvature, layer.name, dense, centred=bias is not None)
    kernels = [factor[None] for factor in svd.factors(*layer.ranks)]
    pressed.put(pressed.balance(kernels))
    lost = dense - pressed.compose(kernels)[0]
    error = float(lost.norm() / dense.norm().clamp_min(1e-30))
    factors = tuple(value.detach() for value in factor_values(pressed))
    if bias is None:
        return StartValues(factors, error)
    inputs = curvature.inputs[layer.name]
    mean = inputs.first.to(dense) / inputs.rows
    return StartValues(factors, error, bias + (lost @ mean).to(bias))  # keeps the mean of W x + b
