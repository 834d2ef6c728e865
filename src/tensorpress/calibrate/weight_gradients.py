"""Gradients of a model's outputs by the weights of its layers, from backward passes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.outputs import deviation_scales, output_tensors, random_direction
from tensorpress.calibrate.patches import can_unfold, output_rows, unfold_inputs
from tensorpress.measure.cost import evaluation_mode, freeze


def weight_gradients(
    model: nn.Module, batches: Sequence[Batch], *, seed: int = 0
) -> dict[str, float]:
    r"""Return the squared norm of the derivative of a model's outputs by each layer's weight.

    Let J be the derivative of one example's outputs by the weight. Noise of variance s in every
    element of the weight changes the outputs by a mean square of :math:`s ‖J‖_F^2`. For a random
    direction :math:`v` of unit variance, :math:`E\,‖J^T v‖^2 = ‖J‖_F^2` (Hutchinson's estimator),
    which takes one backward pass. The result is the mean over examples; labels are ignored.

    Parameters
    ----------
    model : nn.Module
        The model; it is run in eval mode, and its parameters collect no gradients.
    batches : sequence of Batch
        Calibration data, from `tensorpress.calibrate.batches.collect_batches`.
    seed : int
        Seed of the random directions.

    Returns
    -------
    dict of str to float
        The squared norms by layer name.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Identity())
    >>> norms = weight_gradients(net, collect_batches([torch.ones(4000, 2)], net))
    >>> abs(norms["0"] - 6) < 0.5
    True
    """
    layers = {name: layer for name, layer in model.named_modules() if can_unfold(layer)}
    random = torch.Generator().manual_seed(seed)
    sums: dict[str, float] = {}
    scales: list[float] = []
    examples = 0

    def make_hook(name: str, layer: nn.Module) -> Callable[..., Tensor]:
        def forward(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            x = (*args, *kwargs.values())[0].detach()
            # A new tensor, which requires a gradient even if the layer's inputs do not.
            result = output + torch.zeros((), dtype=output.dtype, requires_grad=True)
            if not result.requires_grad:  # the model runs this part without gradients
                return output

            @torch.no_grad()
            def backward(gradient: Tensor) -> None:
                sums[name] = sums.get(name, 0.0) + _sum_squared_norms(layer, x, gradient)

            result.register_hook(backward)  # type: ignore[no-untyped-call]
            return result

        return forward

    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(freeze(model.parameters()))
        for name, layer in layers.items():
            hook = layer.register_forward_hook(make_hook(name, layer), with_kwargs=True)
            stack.callback(hook.remove)
        for batch in batches:
            with torch.enable_grad():
                product = _along_random(model, batch, random, scales)
                if product.requires_grad:
                    torch.autograd.backward(product)
            examples += len(batch)
    return {name: total / examples for name, total in sums.items()}


def parameter_gradients(
    model: nn.Module,
    batches: Sequence[Batch],
    parameters: Mapping[str, nn.Parameter],
    *,
    seed: int = 0,
) -> dict[str, float]:
    r"""Return the squared norm of the derivative of a model's outputs by any parameters.

    This is `weight_gradients` for weights without inputs that can be unfolded, such as those of
    recurrent layers and embeddings. The directions :math:`v_i` of examples are independent, so
    :math:`E\,‖\sum_i J_i^T v_i‖^2 = \sum_i ‖J_i‖_F^2` takes one backward pass per batch.

    Parameters
    ----------
    model : nn.Module
        The model; it is run in eval mode, and its parameters collect no gradients.
    batches : sequence of Batch
        Calibration data, from `tensorpress.calibrate.batches.collect_batches`.
    parameters : mapping of str to nn.Parameter
        Parameters of the model by name.
    seed : int
        Seed of the random directions.

    Returns
    -------
    dict of str to float
        The squared norms (means over examples) of the parameters that outputs depend on.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Embedding(4, 3)
    >>> batches = collect_batches([torch.zeros(500, 1, dtype=torch.long)] * 20, net)
    >>> norms = parameter_gradients(net, batches, {"weight": net.weight})
    >>> 1.5 < norms["weight"] < 6
    True
    """
    random = torch.Generator().manual_seed(seed)
    sums: dict[str, float] = {}
    scales: list[float] = []
    names = {name: parameter for name, parameter in parameters.items() if parameter.is_leaf}
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(freeze(model.parameters()))
        # cuDNN has no backward pass for recurrent layers in eval mode.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        for parameter in names.values():
            parameter.requires_grad_(True)
        for batch in batches:
            with torch.enable_grad():
                product = _along_random(model, batch, random, scales)
                if not product.requires_grad:
                    continue
                gradients = torch.autograd.grad(product, [*names.values()], allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    sums[name] = sums.get(name, 0.0) + float(gradient.double().square().sum())
    examples = sum(map(len, batches))
    return {name: total / examples for name, total in sums.items()}


def _along_random(
    model: nn.Module, batch: Batch, random: torch.Generator, scales: list[float]
) -> Tensor:
    """Return v · f(x), whose gradient by a weight is Jᵀ v, for random v of unit variance.

    ``scales`` is filled at the first batch.
    """
    outputs = output_tensors(model, batch)
    if not scales:
        scales += deviation_scales(outputs, batch)
    return random_direction([y * s for y, s in zip(outputs, scales, strict=False)], random)


def _sum_squared_norms(layer: nn.Module, x: Tensor, gradient: Tensor) -> float:
    """Return the sum over examples of the squared norm of the weight's gradient."""
    total = 0.0
    for x_one, gradient_one in zip(x, gradient, strict=True):
        rows = unfold_inputs(layer, x_one).movedim(1, 0).float()  # (groups, positions, columns)
        slopes = output_rows(layer, gradient_one).movedim(1, 0).float()
        # dW_g = Σ over positions p of slope_pg x_pgᵀ, summed before squaring.
        positions, columns, outputs = *rows.shape[1:], slopes.shape[-1]
        if positions * (columns + outputs) < columns * outputs:
            # |dW|² = sum over p and q of (slope_p · slope_q) (x_p · x_q)
            total += float(((rows @ rows.mT) * (slopes @ slopes.mT)).sum(dtype=torch.float64))
        else:
            total += float(torch.linalg.vector_norm(slopes.mT @ rows)) ** 2
    return total
