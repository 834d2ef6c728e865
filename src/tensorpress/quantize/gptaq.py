"""Rounding layer after layer, each to the responses that the dense model has."""

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

_VALUES = 1 << 25  # of the widest layer, rows by columns, where `ROWS` are fewer


@dataclass(frozen=True)
class RoundedLayer:
    """Symbols of a layer's weight, int32, and the mean squared error and size of its responses."""

    symbols: Tensor
    lost: float
    size: float


@torch.no_grad()
def round_in_order(
    model: nn.Module,
    dense: nn.Module,
    quantizers: Mapping[str, StepQuantizer],
    batches: Sequence[Batch],
    seed: int,
    price: float = 0.0,
) -> dict[str, RoundedLayer]:
    """Round the weights of layers in the order in which they are called, in place.

    What is rounded of a layer is not its dense weight but the one that gives the dense model's
    responses best from the inputs that the layers rounded before leave, so that errors made before
    are made up for; and its bias, or that of the batch norm that follows, is moved to suit.

    Parameters
    ----------
    model : nn.Module
        A copy of `dense`; weights that are not rounded here are best rounded before.
    dense : nn.Module
        Run beside it.
    quantizers : mapping of str to StepQuantizer
        By the names of Linear layers and convolutions. Those that are not called once by every
        batch, all in one order, are left as they are.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.
    seed : int
        Of the choice of positions.
    price : float
        Of a bit; see `Feedback.round`.

    Returns
    -------
    dict
        What became of each layer, by name, in the order of the calls.

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
    >>> held = collect_batches([torch.randn(50, 3)], dense)
    >>> found = round_in_order(model, dense, {"0": quantizer, "1": quantizer}, held, seed=0)
    >>> list(found), torch.equal(quantizer.values(found["0"].symbols), model[0].weight)
    (['0', '1'], True)
    """
    names = _in_one_order(dense, list(quantizers), batches)
    if not names:
        return {}
    widest = max(dense.get_submodule(name).get_parameter("weight")[0].numel() for name in names)
    positions = Positions(max(1, max(ROWS, _VALUES // widest) // len(batches)), seed)
    after = find_next_ops(model, names, batches[0])
    found = {}
    given = inputs_in_order(dense, names, batches, positions)
    left = inputs_in_order(model, names, batches, positions)
    for (name, whole), (_, inputs) in zip(given, left, strict=True):
        weight = dense.get_submodule(name).get_parameter("weight")
        kernel = weight.reshape(whole.shape[1], -1, whole.shape[2]).double()
        responses = torch.einsum("pgc,goc->pgo", whole, kernel.to(whole))
        layer, norm = model.get_submodule(name), after[name].norm
        own = layer._parameters.get("bias")
        regression = Regression(inputs, biased=own is not None or norm is not None)
        best = regression.kernel(responses, prior=kernel) / quantizers[name].step
        symbols = _rounded(best.cpu(), regression.second.cpu(), price)
        values = quantizers[name].values(symbols, torch.float64).to(kernel)
        bias = regression.bias(responses, values)
        layer.get_parameter("weight").copy_(values.reshape(weight.shape))
        if own is not None:
            own.add_(bias.flatten().to(own))
        elif norm is not None:
            absorb_bias(norm, bias.flatten().to(weight))
        errors = torch.einsum("pgc,goc->pgo", inputs, values.to(inputs)) + bias.to(inputs)
        found[name] = RoundedLayer(
            symbols.reshape(weight.shape), _mean_square(errors - responses), _mean_square(responses)
        )
    return found


def _rounded(values: Tensor, second: Tensor, price: float) -> Tensor:
    """Return symbols of kernels in steps, group by group."""
    found = []
    for part, moments in zip(values, second, strict=True):
        first = Feedback.from_moments(moments).round(part, price)
        found.append(polish(first, part, moments, price))
    return torch.stack(found)


def _mean_square(rows: Tensor) -> float:
    """Return the mean over rows of the sum of squares."""
    return float(rows.double().square().sum()) / len(rows)


def _in_one_order(model: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> list[str]:
    """Return the layers that every batch calls once, none where batches differ in their order."""
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
    kept = [[name for name in order if name in once] for order in orders]
    return kept[0] if all(order == kept[0] for order in kept) else []
