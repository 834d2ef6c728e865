"""Look-up frequencies of the vectors of an Embedding, as the norm of its fit."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, outside_contexts
from tensorpress.calibrate.full_pass import run_to_end
from tensorpress.measure.cost import evaluation_mode
from tensorpress.schemes.layer_spec import layer_class


def is_embedding(module: nn.Module) -> bool:
    """Return whether a module is an Embedding.

    Examples
    --------
    >>> is_embedding(nn.Embedding(5, 3)), is_embedding(nn.Linear(5, 3))
    (True, False)
    """
    return layer_class(module) is nn.Embedding


def count_lookups(
    model: nn.Module, names: Iterable[str], batches: Sequence[Batch]
) -> Mapping[str, Tensor]:
    """Return how often each vector of the embeddings is looked up, without padding.

    Parameters
    ----------
    model : nn.Module
        The model, run in eval mode without gradients.
    names : iterable of str
        Names of embeddings.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.

    Returns
    -------
    mapping of str to Tensor
        Counts by name, float64 of shape (vectors,), in the order of the calls. Embeddings that are
        not called are missing.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Embedding(3, 2))
    >>> batches = collect_batches([torch.tensor([[0, 2, 2]])], net)
    >>> count_lookups(net, ["0"], batches)["0"].tolist()
    [1.0, 0.0, 2.0]
    """
    counts: dict[str, Tensor] = {}

    def make_hook(name: str, layer: nn.Module) -> Callable[..., None]:
        @outside_contexts()
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            indices = (*args, *kwargs.values())[0]
            rows = batch.unpadded(layer, indices[..., None]).flatten()
            if len(rows):
                vectors = len(layer.get_parameter("weight"))
                number = torch.bincount(rows, minlength=vectors).double()
                counts[name] = counts.get(name, 0) + number

        return hook

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model))
        for name in names:
            layer = model.get_submodule(name)
            hook = layer.register_forward_pre_hook(make_hook(name, layer), with_kwargs=True)
            stack.callback(hook.remove)
        for batch in batches:
            run_to_end(model, batch)
    return counts


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
