"""Chooses the input channels that a layer keeps by its responses."""

import logging
from functools import partial
from math import prod

import torch
from torch import Tensor

from tensorpress.reconstruct.admm import LowRankSparse, split_ranks
from tensorpress.reconstruct.alternating_fit import fit_kernels
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.reconstruct.relu_fit import COUPLING, Retarget
from tensorpress.schemes.pressed_layer import Composed
from tensorpress.schemes.stages import pointwise_kernel

logger = logging.getLogger("tensorpress.press")


def choose_channels(
    layer: Composed,
    name: str,
    kernel: Tensor,
    second: Tensor,
    scale: Tensor | None = None,
    retarget: Retarget | None = None,
) -> list[Tensor]:
    """Choose the input channels of a layer by ADMM; return the kernels to start from.

    The present choice stays if it leaves less error.

    Parameters
    ----------
    layer : Composed
        The pressed layer; its choice of channels is changed in place, its weights are not.
    name : str
        The layer's name, for the log.
    kernel : Tensor
        The kernel to fit, (groups, out, in, *kernel), with its outputs multiplied by ``scale``.
    second : Tensor
        Second moments of its inputs, (groups, columns, columns).
    scale : Tensor, optional
        Scale of the outputs, (groups, out); 1 by default.
    retarget : callable, optional
        Updates the kernel to fit, where responses are to match after a nonlinearity.
    """
    spec = layer.spec
    before, start = layer.selection(), layer.kernels()
    assert before is not None
    channels = before.shape[1]
    rank = start[1].shape[1] if start[1:] else 0  # 0: no low-rank part
    scale = kernel.new_ones(kernel.shape[:2]) if scale is None else scale
    factor = pointwise_kernel(scale[..., None], spec)
    seen = Composition.of(layer).scaled(scale)
    fit = partial(fit_kernels, target=kernel, second=second, composition=seen)
    by_weight = fit(start)
    groups = []
    for group in range(spec.groups):
        chosen, split = split_ranks(
            kernel[group].flatten(1),
            second[group] * (1 if retarget is None else COUPLING),
            channels,
            rank,
            width=prod(spec.kernel),
            retarget=_within(retarget, kernel, group),
        )
        _report(name, split)
        groups.append(chosen)
    layer.select(torch.stack(groups))
    parts = zip(kernel / factor, groups, strict=True)
    few = torch.stack([part[:, chosen] for part, chosen in parts])
    by_responses = fit([few, *start[1:]])
    if by_responses.losses[-1] <= by_weight.losses[-1]:
        return by_responses.kernels
    layer.select(before)
    return by_weight.kernels


def _within(retarget: Retarget | None, kernel: Tensor, group: int) -> Retarget | None:
    """Restrict a retargeting to one group; the other groups stay as in the kernel."""
    if retarget is None:
        return None

    def alone(part: Tensor) -> Tensor:
        whole = kernel.flatten(2).clone()
        whole[group] = part
        return retarget(whole)[group]

    return alone


def _report(name: str, split: LowRankSparse) -> None:
    logger.info(
        "layer %s: ADMM ended after %d iterations, residuals %.1e (primal) and %.1e (dual)",
        *(name, len(split.primal), split.primal[-1], split.dual[-1]),
        extra={"layer": name, "primal": split.primal, "dual": split.dual},
    )
