"""Fidelity: the distance of a compressed model's outputs from the dense model's."""

from collections.abc import Iterable

from torch import nn

from tensorpress.calibrate.batches import CalibrationBatch, collect_batches
from tensorpress.compress.reference import Reference
from tensorpress.compress.verdict import Fidelity


def fidelity(
    dense: nn.Module, compressed: nn.Module, batches: Iterable[CalibrationBatch]
) -> Fidelity:
    """Measure the distance of a model's outputs from the dense model's.

    Parameters
    ----------
    dense, compressed : nn.Module
        The models; they are run in eval mode.
    batches : iterable
        Inputs, or pairs of inputs and labels, as for `tensorpress.press`, preferably ones that
        nothing was fitted to.

    Raises
    ------
    InvalidArgumentError
        If there are no batches, or the models return no floating-point tensors or different ones.

    Examples
    --------
    >>> import torch
    >>> net = nn.Linear(4, 3)
    >>> fidelity(net, net, [torch.randn(8, 4)]).error
    0.0
    """
    return Reference(dense, collect_batches(batches, dense)).compare(compressed)
