"""How much the outputs of a model move with the weights of its layers: a backward pass."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, model_outputs
from tensorpress.calibrate.patches import can_unfold, unfold_inputs
from tensorpress.measure.cost import evaluation_mode
from tensorpress.schemes.layer_spec import CONVS


def weight_gradients(
    model: nn.Module, batches: Sequence[Batch], *, seed: int = 0
) -> dict[str, float]:
    r"""Return the squared norm of the derivative of a model's outputs by the weight of each layer.

    For a random :math:`v` of unit variance :math:`E\,‖J^T v‖^2 = ‖J‖_F^2`, J being the derivative
    of one example's outputs by the weight: noise of variance s in every weight of the layer moves
    the outputs by :math:`s ‖J‖_F^2`, squared, on average. Positions of a convolution add up before
    they are squared. Returned is the mean over examples; labels are not looked at.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode; its parameters collect no gradients.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.
    seed : int
        Of the random directions.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Identity())
    >>> found = weight_gradients(net, collect_batches([torch.ones(4000, 2)], net))
    >>> abs(found["0"] - 6) < 0.5
    True
    """
    layers = {name: layer for name, layer in model.named_modules() if can_unfold(layer)}
    random = torch.Generator().manual_seed(seed)
    sums: dict[str, float] = {}
    examples = 0

    def watch(name: str, layer: nn.Module) -> Callable[..., Tensor]:
        def forward(_: nn.Module, given: Any, named: Any, found: Tensor) -> Tensor:
            x = (*given, *named.values())[0].detach()
            # A leaf where no gradient comes from before, and nothing changes it in place.
            onward = found + torch.zeros((), dtype=found.dtype, requires_grad=True)
            if not onward.requires_grad:  # in a part of the model that runs without gradients
                return found

            @torch.no_grad()
            def backward(gradient: Tensor) -> None:
                sums[name] = sums.get(name, 0.0) + _energy(layer, x, gradient)

            onward.register_hook(backward)  # type: ignore[no-untyped-call]
            return onward

        return forward

    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        for parameter, required in asked:
            stack.callback(parameter.requires_grad_, required)
            parameter.requires_grad_(False)
        for name, layer in layers.items():
            hook = layer.register_forward_hook(watch(name, layer), with_kwargs=True)
            stack.callback(hook.remove)
        for batch in batches:
            with torch.enable_grad():
                found = model_outputs(model, batch)
                direction = torch.randn(found.shape, generator=random).to(found)
                along = (found * direction).sum()
                if along.requires_grad:
                    torch.autograd.backward(along)
            examples += len(batch)
    return {name: total / examples for name, total in sums.items()}


def _energy(layer: nn.Module, x: Tensor, gradient: Tensor) -> float:
    """Return the sum over examples of the squared norm of the weight's gradient."""
    groups = layer.groups if isinstance(layer, CONVS) else 1
    total = 0.0
    for one, slope in zip(x, gradient, strict=True):
        rows = unfold_inputs(layer, one)  # (positions, groups, columns)
        by_position = slope.flatten(1).T if isinstance(layer, CONVS) else slope
        by_position = by_position.reshape(len(rows), groups, -1)
        product = by_position.permute(1, 2, 0).float() @ rows.permute(1, 0, 2).float()
        total += float(product.square().sum(dtype=torch.float64))
    return total
