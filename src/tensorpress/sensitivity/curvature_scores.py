"""Scores the ranks of Linear layers by the curvature of the loss."""

from collections.abc import Sequence

from torch import nn

from tensorpress.calibrate.loss_curvature import LossCurvature
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layer_candidates import applicable_schemes
from tensorpress.planning.layers import Layer
from tensorpress.planning.scores import Scored, Scores
from tensorpress.reconstruct.weighted_svd import decompose_layer
from tensorpress.schemes.registry import scheme as scheme_named

TWO_FACTORS = ("pivoted_svd", "channel_svd")
"""Schemes whose rank is the rank of a Linear's weight."""


def curvature_scores(
    model: nn.Module,
    curvature: LossCurvature,
    *,
    scheme: str = "pivoted_svd",
    targets: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
) -> Scores:
    r"""Score the ranks of Linear layers by how much they raise the loss.

    The score of rank r is :math:`\sum_{i>r} σ_i^2`, with σ the singular values of the weight in the
    norms of inputs and gradients (`tensorpress.reconstruct.weighted_svd.WeightedSVD`). It estimates
    the divergence of an example's outputs from the dense model's. Press with
    ``calibration=curvature``, so that layers get these factors.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    curvature : LossCurvature
        Its curvature.
    scheme : {"pivoted_svd", "channel_svd"}
        The scheme that presses the layers.
    targets, skip : sequence of str
        As for `tensorpress.plan`.

    Returns
    -------
    Scores
        The scores, for the ``allocation`` of `tensorpress.plan`.

    Raises
    ------
    InvalidArgumentError
        If the scheme is another one, or nothing can be pressed.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    >>> curvature = LossCurvature.collect(net, [torch.randn(100, 20)])
    >>> [choice.ranks for choice in curvature_scores(net, curvature).layers["2"]]
    [(1,), (2,), (3,)]
    """
    if scheme not in TWO_FACTORS:
        raise InvalidArgumentError(
            f"the curvature of the loss scores ranks of {' and '.join(TWO_FACTORS)}, not of "
            f"{scheme}"
        )
    method = scheme_named(scheme)
    scores = {}
    for name, layer in linear_layers(model, targets, skip).items():
        if name not in curvature.gradients:
            continue
        weight = layer.kernel()[0]
        svd = decompose_layer(curvature, name, weight, centred=layer.spec().bias)
        lost = svd.lost().tolist()
        scores[name] = tuple(
            Scored(scheme, (rank,), lost[rank], measured=False)
            for (rank,) in method.candidates(layer.spec())
        )
    if not scores:
        raise InvalidArgumentError(
            f"the model has no Linear that {scheme} can press by the curvature of the loss"
        )
    return Scores("curvature of the loss", 0.0, scores)


def linear_layers(
    model: nn.Module, targets: Sequence[str] = ("*",), skip: Sequence[str] = ()
) -> dict[str, Layer]:
    """Return the layers whose ranks the curvature scores, by name."""
    layers, _ = DenseModel.from_module(model, None, None).select_layers(targets, skip)
    method = scheme_named(TWO_FACTORS[0])
    return {name: x for name, x in layers.items() if applicable_schemes(x, [method])[0]}
