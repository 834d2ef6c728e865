"""Factors of any parameter, fitted in the norm of gradient moments."""

import torch
from torch import Tensor

from tensorpress.calibrate.gradient_moments import GradientMoments
from tensorpress.decompose.precision import to_working_precision
from tensorpress.reconstruct.weighted_svd import WeightedSVD
from tensorpress.schemes.canonical_kernel import kernel_to_weight, weight_to_kernel
from tensorpress.schemes.initialization import StartValues
from tensorpress.schemes.layer_plan import LayerPlan


def decompose_kernel(kernel: Tensor, moments: GradientMoments) -> list[WeightedSVD]:
    """Return the SVD of each group of a kernel, in the norms of its gradient moments.

    Parameters
    ----------
    kernel : Tensor
        Canonical kernel, (groups, out, in, *kernel).
    moments : GradientMoments
        The moments of its parameter.
    """
    parts = (kernel.flatten(2).cpu(), moments.inputs, moments.outputs)
    return [WeightedSVD.of(*group) for group in zip(*parts, strict=True)]


def gradient_losses(kernel: Tensor, moments: GradientMoments) -> list[float]:
    """Return the squared error of the outputs, relative to their variance, at ranks 0, 1, ….

    Examples
    --------
    >>> eye = torch.eye(2).double()[None]
    >>> moments = GradientMoments(torch.diag(torch.tensor([3.0, 1.0]))[None].double(), eye)
    >>> [round(x, 1) for x in gradient_losses(torch.eye(2)[None], moments)]
    [1.0, 0.3, 0.0]
    """
    traces = moments.outputs.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-30).tolist()
    svds = decompose_kernel(kernel, moments)
    # Σ over i > r of σ² / tr B, summed over groups
    losses = [svd.lost() / trace for svd, trace in zip(svds, traces, strict=True)]
    return torch.stack(losses).sum(0).tolist()


def fit_to_gradients(layer: LayerPlan, weight: Tensor, moments: GradientMoments) -> StartValues:
    """Return the two factors of a parameter that change the outputs least.

    Parameters
    ----------
    layer : LayerPlan
        Plan of the parameter by svd_weight.
    weight : Tensor
        The dense parameter.
    moments : GradientMoments
        The moments of its gradients.
    """
    [rank], kernel = layer.ranks, to_working_precision(weight_to_kernel(weight, layer.spec))
    lefts, rights = [], []
    for svd in decompose_kernel(kernel, moments):
        first, last = svd.factors(rank)  # (rank, n) and (out, rank)
        # equal norms of the components in both factors
        balance = (first.norm(dim=1) / last.norm(dim=0).clamp_min(1e-30)).clamp_min(1e-30).sqrt()
        lefts.append(last * balance)
        rights.append(first.mT / balance)
    pair = [torch.stack(parts).to(weight) for parts in (lefts, rights)]
    rebuilt = (pair[0] @ pair[1].mT).reshape(kernel.shape)
    error = (kernel_to_weight(rebuilt, layer.spec) - weight).norm() / weight.norm().clamp_min(1e-30)
    single = len(lefts) == 1
    return StartValues(tuple(x[0] if single else x for x in pair), float(error))
