"""What factors start from: the decomposed weight, a random draw, or nothing."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from tensorpress.decompose.shared_core import shared_tucker
from tensorpress.planning.plan import SchemePlan
from tensorpress.schemes.base import bias_of, keep_gradients
from tensorpress.schemes.factorized_weight import Factors
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.tucker_weight import TuckerWeight, balanced, initial_std


def decomposed(
    tuckers: Sequence[TuckerWeight], weights: Sequence[Tensor]
) -> Sequence[Factors | None]:
    """Return factors a weight, None where the parametrization is to decompose it itself."""
    factors: list[Factors | None] = [None] * len(tuckers)
    sharing = _sharing(tuckers)
    if sharing:
        tensors = [tuckers[i].reshaped(weights[i]) for i in sharing]
        fit = shared_tucker(tensors, tuckers[sharing[0]].ranks)
        core, matrices = balanced(fit.core, fit.factors)
        for index, own in zip(sharing, matrices, strict=True):
            factors[index] = (core, *own)
    return factors


def drawn(
    tuckers: Sequence[TuckerWeight],
    weights: Sequence[Tensor],
    start: str,
    generators: Sequence[torch.Generator],
) -> Sequence[Factors]:
    """Draw factors a weight; each weight they stand for has the initializer's deviation."""
    stds = [initial_std(weight, start) for weight in weights]
    core_stds = [tucker.balanced_std(std) for tucker, std in zip(tuckers, stds, strict=True)]
    cores = list(map(TuckerWeight.draw_core, tuckers, core_stds, generators))
    sharing = _sharing(tuckers)
    if sharing:
        common = prod(core_stds[i] ** (1 / len(sharing)) for i in sharing)
        shared = cores[sharing[0]] * (common / core_stds[sharing[0]])
        cores = [shared if i in sharing else core for i, core in enumerate(cores)]
    return [
        tucker.draw(std, core, weight, generator)
        for tucker, std, core, weight, generator in zip(
            tuckers, stds, cores, weights, generators, strict=True
        )
    ]


def zeros(tucker: TuckerWeight, weight: Tensor) -> Factors:
    """Return factors of zeros, on the device and in the dtype of a weight."""
    core = tucker.ranks[:1] if tucker.diagonal else tucker.ranks
    return tuple(map(weight.new_zeros, (core, *zip(tucker.modes, tucker.ranks, strict=True))))


def unfilled(plan: SchemePlan, layer: nn.Module) -> nn.Module:
    """Return a layer pressed as planned with factors of no value, and the bias of the layer.

    Raises
    ------
    InvalidArgumentError
        Where the scheme does not take the layer at these ranks.
    """
    plan.check()
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    pressed = scheme(plan.scheme).skeleton(plan.spec, plan.ranks, like=weight.detach())
    keep_gradients(pressed, layer)
    held = bias_of(pressed)
    if held is not None and bias is not None:
        with torch.no_grad():
            held.copy_(bias)
    return pressed.train(layer.training)


def drawn_layer(
    plan: SchemePlan, layer: nn.Module, start: str, generator: torch.Generator
) -> nn.Module:
    """Return a layer pressed as planned with all factors drawn from one normal distribution.

    Their deviation is such that the weight they stand for has exactly the initializer's.
    """
    weight = layer.get_parameter("weight").detach()
    # In half precision a product of draws of deviation 1 might overflow.
    pressed = unfilled(plan, layer).to("cpu", torch.float64)
    bias = bias_of(pressed)
    factors = [parameter for parameter in pressed.parameters() if parameter is not bias]
    with torch.no_grad():
        for factor in factors:
            factor.copy_(torch.randn(factor.shape, generator=generator, device="cpu"))
        for part in pressed.modules():
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx].zero_()
        rms = float(scheme(plan.scheme).compose(pressed).square().mean().sqrt()) or 1.0
        for factor in factors:
            factor.mul_((initial_std(weight, start) / rms) ** (1 / len(factors)))
    return pressed.to(weight)


def _sharing(tuckers: Sequence[TuckerWeight]) -> list[int]:
    return [i for i, tucker in enumerate(tuckers) if tucker.shared]
