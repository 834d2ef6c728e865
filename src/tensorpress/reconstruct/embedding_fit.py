"""Fits an Embedding by the look-up frequencies of its vectors and their effect on outputs."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.outputs import deviation_scales, output_tensors, random_direction
from tensorpress.measure.cost import evaluation_mode, freeze
from tensorpress.reconstruct.alternating_fit import fit_kernels
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.reconstruct.regression import damped_cholesky
from tensorpress.reconstruct.second_moment import DiagonalMoment
from tensorpress.reconstruct.weighted_svd import GRADIENT_DAMPING
from tensorpress.schemes.layer_spec import layer_class


def is_embedding(module: nn.Module) -> bool:
    """Return whether a module is an Embedding.

    Examples
    --------
    >>> is_embedding(nn.Embedding(5, 3)), is_embedding(nn.Linear(5, 3))
    (True, False)
    """
    return layer_class(module) is nn.Embedding


@dataclass
class Lookups:
    """Statistics of an Embedding on calibration data.

    Attributes
    ----------
    counts : Tensor
        How often each vector is looked up, without padding; (vectors,), float64.
    gradients : Tensor
        Sum of g gᵀ for the gradients g of random directions of the outputs by the vectors,
        (length, length), float64; zero where parts of the model run without gradients.
    """

    counts: Tensor
    gradients: Tensor


def record_lookups(
    model: nn.Module, names: Iterable[str], batches: Sequence[Batch], *, seed: int = 0
) -> dict[str, Lookups]:
    """Run a model forward and backward, and record the look-ups of embeddings.

    Parameters
    ----------
    model : nn.Module
        The model, run in eval mode.
    names : iterable of str
        Names of embeddings.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.
    seed : int
        Seed of the directions.

    Returns
    -------
    dict of str to Lookups
        The statistics by name, in the order of the calls.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Embedding(3, 2))
    >>> batches = collect_batches([torch.tensor([[0, 2, 2]])], net)
    >>> record_lookups(net, ["0"], batches)["0"].counts.tolist()
    [1.0, 0.0, 2.0]
    """
    random, scales = torch.Generator().manual_seed(seed), list[float]()
    lookups: dict[str, Lookups] = {}

    def make_hook(name: str, layer: nn.Module) -> Callable[..., Tensor | None]:
        vectors, length = layer.get_parameter("weight").shape

        def hook(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor | None:
            indices = (*args, *kwargs.values())[0]
            rows = batch.unpadded(layer, indices[..., None]).flatten()
            if not len(rows):
                return None
            square = torch.zeros(length, length, dtype=torch.float64)
            known = lookups.setdefault(name, Lookups(torch.zeros(vectors).double(), square))
            known.counts += torch.bincount(rows, minlength=vectors).cpu()
            result = output + torch.zeros((), dtype=output.dtype, requires_grad=True)
            if not result.requires_grad:  # in a part of the model that runs without gradients
                return None

            @torch.no_grad()
            def backward(gradient: Tensor) -> None:
                g = batch.unpadded(layer, gradient).reshape(-1, length).float()
                known.gradients += (g.mT @ g).double().cpu()

            result.register_hook(backward)  # type: ignore[no-untyped-call]
            return result

        return hook

    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(freeze(model.parameters()))
        stack.enter_context(torch.enable_grad())
        for name in names:
            layer = model.get_submodule(name)
            hook = layer.register_forward_hook(make_hook(name, layer), with_kwargs=True)
            stack.callback(hook.remove)
        for batch in batches:
            outputs = output_tensors(model, batch)
            scales = scales or deviation_scales(outputs, batch)
            scaled = [y * scale for y, scale in zip(outputs, scales, strict=False)]
            along = random_direction(scaled, random)
            if along.requires_grad:
                torch.autograd.backward(along)
    return lookups


def fit_embedding(
    kernels: Sequence[Tensor],
    dense: Tensor,
    lookups: Lookups,
    composition: Composition,
    places: Sequence[int] | None = None,
) -> list[Tensor]:
    r"""Fit kernels to vectors, weighted by their look-ups and the gradients of the outputs.

    The objective is :math:`\sum_v p_v\, (w_v - \tilde w_v)^T B (w_v - \tilde w_v)`, with the shares
    p of the vectors and the second moment B of the gradients.

    Parameters
    ----------
    kernels : sequence of Tensor
        Canonical kernels, the start of the fit.
    dense : Tensor
        The table as a kernel, (1, length, vectors).
    lookups : Lookups
        Statistics of the embedding.
    composition : Composition
        The composition of the kernels.
    places : sequence of int, optional
        Fit only the kernels at these places.
    """
    second = DiagonalMoment(vector_shares(lookups.counts)[None].to(dense))
    if composition.parts is not None or not bool(lookups.gradients.any()):
        return fit_kernels(kernels, dense, second, composition, places=places).kernels
    level = GRADIENT_DAMPING * lookups.gradients.diagonal().mean()
    root = damped_cholesky(lookups.gradients[None], level[None])[0].mT.to(dense)  # B = RᵀR
    *first, last = kernels
    # |R (W - W̃)|² is least for the kernels of R W, of which the last is R times that of W.
    start = [*first, root @ last.to(dense)]
    fit = fit_kernels(start, root @ dense, second, composition, places=places).kernels
    return [*fit[:-1], torch.linalg.solve_triangular(root, fit[-1], upper=True)]


def vector_shares(counts: Tensor) -> Tensor:
    r"""Return the expected share of each vector in the look-ups of further data.

    By Good and Turing, the share of vectors that were never looked up equals that of the vectors
    that were looked up once. It is divided evenly among the unseen vectors.

    References
    ----------
    Good (1953), "The population frequencies of species and the estimation of population
    parameters".

    Examples
    --------
    >>> vector_shares(torch.tensor([3.0, 1.0, 0.0, 0.0]).double()).tolist()
    [0.5625, 0.1875, 0.125, 0.125]
    """
    total, unseen = counts.sum(), counts == 0
    if not bool(unseen.any()):
        return counts / total
    # P(unseen) = n₁ / n, with at least one look-up and at most a half
    missing = ((counts == 1).sum().clamp_min(1) / total).clamp_max(0.5)
    return torch.where(unseen, missing / unseen.sum(), (1 - missing) * counts / total)
