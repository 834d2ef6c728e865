"""GPTAQ: rounds weights layer by layer so that responses match those of the dense model."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, run_model
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.measure.cost import evaluation_mode
from tensorpress.quantize.gptq import Feedback, polish
from tensorpress.reconstruct.batch_norm import absorb_bias
from tensorpress.reconstruct.next_op import find_next_ops
from tensorpress.reconstruct.regression import Regression
from tensorpress.reconstruct.samples import ROWS, Positions, inputs_in_order

_MAX_VALUES = 1 << 25  # rows times columns of the widest layer, if that allows more than `ROWS`


@dataclass(frozen=True)
class RoundedLayer:
    """Symbols (int32) of a layer's weight, and the mean squared error and norm of its responses."""

    symbols: Tensor
    squared_error: float
    squared_norm: float


@torch.no_grad()
def round_in_order(
    model: nn.Module,
    dense: nn.Module,
    quantizers: Mapping[str, StepQuantizer],
    batches: Sequence[Batch],
    seed: int,
    price: float = 0.0,
    order: Sequence[str] | None = None,
) -> dict[str, RoundedLayer]:
    """Round the weights of layers in the order in which they are called, in place.

    For each layer, a regression gives the weight that maps inputs in the partly rounded model to
    responses of the dense model, which compensates for earlier errors. This weight is rounded, and
    the bias of the layer, or of the batch norm after it, is refitted.

    Parameters
    ----------
    model : nn.Module
        A copy of `dense`; its other weights should be rounded already.
    dense : nn.Module
        The dense model.
    quantizers : mapping of str to StepQuantizer
        The quantizers by the names of Linear layers and convolutions. Layers that some batch does
        not call once, or in another order, are left unchanged.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.
    seed : int
        Seed of the sampled positions.
    price : float
        The price of a bit; see `Feedback.round`.
    order : sequence of str, optional
        The layers in the order of their calls, from `common_call_order`; by default found by a pass
        over the batches.

    Returns
    -------
    dict
        The rounded layers by name, in the order of the calls.

    References
    ----------
    Li et al., "GPTAQ: efficient finetuning-free quantization for asymmetric calibration", ICML
    2025.

    Examples
    --------
    >>> from copy import deepcopy
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> dense = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    >>> model, quantizer = deepcopy(dense), StepQuantizer(-8)
    >>> batches = collect_batches([torch.randn(50, 3)], dense)
    >>> layers = round_in_order(model, dense, {"0": quantizer, "1": quantizer}, batches, seed=0)
    >>> list(layers), torch.equal(quantizer.values(layers["0"].symbols), model[0].weight)
    (['0', '1'], True)
    """
    names = common_call_order(dense, list(quantizers), batches) if order is None else order
    if not names:
        return {}
    widest = max(dense.get_submodule(name).get_parameter("weight")[0].numel() for name in names)
    positions = Positions(max(1, max(ROWS, _MAX_VALUES // widest) // len(batches)), seed)
    after = find_next_ops(model, names, batches[0])
    layers = {}
    dense_pass = inputs_in_order(dense, names, batches, positions)
    rounded_pass = inputs_in_order(model, names, batches, positions)
    for (name, dense_inputs), (_, inputs) in zip(dense_pass, rounded_pass, strict=True):
        weight = dense.get_submodule(name).get_parameter("weight")
        kernel = weight.reshape(dense_inputs.shape[1], -1, dense_inputs.shape[2]).double()
        # y = W x at every position p of the dense model
        responses = torch.einsum("pgc,goc->pgo", dense_inputs, kernel.to(dense_inputs))
        layer, norm = model.get_submodule(name), after[name].norm
        bias = layer._parameters.get("bias")
        regression = Regression(inputs, biased=bias is not None or norm is not None)
        # argmin over W of |y - W x'|^2 for the inputs x' of the partly rounded model, in steps
        best = regression.kernel(responses, prior=kernel) / quantizers[name].step
        best, second = best.cpu(), regression.second.cpu()
        symbols = Feedback.from_moments(second).round(best, price)
        symbols = polish(symbols, best, second, price)
        values = quantizers[name].values(symbols, torch.float64).to(kernel)
        shift = regression.bias(responses, values)
        layer.get_parameter("weight").copy_(values.reshape(weight.shape))
        if bias is not None:
            bias.add_(shift.flatten().to(bias))
        elif norm is not None:
            absorb_bias(norm, shift.flatten().to(weight))
        errors = torch.einsum("pgc,goc->pgo", inputs, values.to(inputs)) + shift.to(inputs)
        layers[name] = RoundedLayer(
            symbols.reshape(weight.shape), _mean_square(errors - responses), _mean_square(responses)
        )
    return layers


def _mean_square(rows: Tensor) -> float:
    """Return the mean over rows of the sum of squares."""
    return float(rows.double().square().sum()) / len(rows)


@torch.no_grad()
def common_call_order(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch]
) -> list[str]:
    """Return the layers that every batch calls once, or none if batches differ in the order.

    Parameters
    ----------
    model : nn.Module
        The model, run in eval mode.
    names : sequence of str
        Names of the candidate layers.
    batches : sequence of Batch
        At least one, from `tensorpress.calibrate.batches.collect_batches`.
    """
    if not names:
        return []
    calls: list[str] = []

    def hook(name: str) -> Any:
        return lambda *_: calls.append(name)

    orders = []
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_hook(hook(name)).remove)
        for batch in batches:
            calls.clear()
            run_model(model, batch)
            orders.append([name for name in calls if calls.count(name) == 1])
    once = set.intersection(*map(set, orders))
    first, *others = ([name for name in order if name in once] for order in orders)
    return first if all(order == first for order in others) else []
