"""Second moments of a model's gradients, for parameters whose inputs cannot be observed."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.examples import rebatch
from tensorpress.calibrate.outputs import (
    Deviation,
    deviation_scales,
    output_tensors,
    random_direction,
    token_mask,
)
from tensorpress.measure.cost import evaluation_mode, freeze
from tensorpress.schemes.canonical_kernel import weight_to_kernel
from tensorpress.schemes.layer_spec import LayerSpec

WIDEST = 4608
"""Maximum number of rows or columns of a kernel; its two moments take 170 MB each."""

PASSES = 64
"""Number of backward passes among which the examples are divided."""


@dataclass
class GradientMoments:
    r"""Means over examples of G Gᵀ and Gᵀ G, where G is the gradient of the outputs by a kernel.

    An error D in the kernel causes a squared error of the outputs, relative to their variance over
    examples, of about :math:`\sum \operatorname{tr}(B D A D^T) / \operatorname{tr} B`.

    Attributes
    ----------
    outputs : Tensor
        B, (groups, out, out), float64.
    inputs : Tensor
        A, (groups, n, n), float64.

    References
    ----------
    Gupta, Koren, Singer (2018), "Shampoo: preconditioned stochastic tensor optimization".
    """

    outputs: Tensor
    inputs: Tensor


def gradient_moments(
    model: nn.Module,
    batches: Sequence[Batch],
    parameters: Mapping[str, tuple[nn.Parameter, LayerSpec]],
    *,
    seed: int = 0,
) -> dict[str, GradientMoments]:
    """Return the moments of the gradients by parameters, however the model uses them.

    This works for parameters whose inputs cannot be observed: experts stacked in one Parameter,
    `nn.Bilinear`, and convolutions with an overridden forward pass. The random directions of the
    outputs are independent between examples, so that one backward pass serves many examples.

    Parameters
    ----------
    model : nn.Module
        A model; it is run in eval mode.
    batches : sequence of Batch
        Calibration data, from `tensorpress.calibrate.batches.collect_batches`.
    parameters : mapping of str to (nn.Parameter, LayerSpec)
        Parameters of the model, and their layout as kernels.
    seed : int
        Seed of the directions.

    Returns
    -------
    dict of str to GradientMoments
        The moments of the parameters that influence the outputs, with at most 4,608 rows and
        columns.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> from tensorpress.schemes.layer_spec import describe_weight
    >>> net = nn.Bilinear(3, 2, 4)
    >>> x = {"input1": torch.randn(50, 3), "input2": torch.randn(50, 2)}
    >>> weights = {"weight": (net.weight, describe_weight(net, "weight"))}
    >>> gradient_moments(net, collect_batches([x], net), weights)["weight"].inputs.shape
    torch.Size([4, 2, 2])
    """
    random = torch.Generator().manual_seed(seed)
    values = {
        name: parameter
        for name, (parameter, spec) in parameters.items()
        if parameter.is_leaf and max(spec.kernel_shape[1], prod(spec.kernel_shape[2:])) <= WIDEST
    }
    moments: dict[str, GradientMoments] = {}
    deviations: dict[int, Deviation] = {}
    scales: list[float] = []
    examples = sum(map(len, batches))
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(freeze(model.parameters()))
        for parameter in values.values():
            parameter.requires_grad_(True)
        for batch in rebatch(batches, -(-examples // PASSES)) if values else ():
            with torch.enable_grad():
                outputs = output_tensors(model, batch)
                scales = scales or deviation_scales(outputs, batch)
                outputs = [y * scale for y, scale in zip(outputs, scales, strict=False)]
                along = random_direction(outputs, random)
                if not along.requires_grad:
                    continue
                gradients = torch.autograd.grad(along, [*values.values()], allow_unused=True)
            for place, y in enumerate(outputs):
                deviations.setdefault(place, Deviation()).add(y.detach(), token_mask(y, batch))
            for name, gradient in zip(values, gradients, strict=True):
                if gradient is not None:
                    _add(moments, name, weight_to_kernel(gradient, parameters[name][1]))
    energy = sum(deviation.energy for deviation in deviations.values())
    for sums in moments.values():  # relative to the energy of the outputs
        sums.outputs /= max(energy, 1e-30)
        sums.inputs /= max(energy, 1e-30)
    return moments


def _add(moments: dict[str, GradientMoments], name: str, gradient: Tensor) -> None:
    g = gradient.flatten(2).double().cpu()  # (groups, out, n)
    outputs, inputs = g @ g.mT, g.mT @ g
    if name in moments:
        moments[name].outputs += outputs
        moments[name].inputs += inputs
    else:
        moments[name] = GradientMoments(outputs, inputs)
