"""Rank selection by Kronecker-factored curvature: the effect of a layer's error on the outputs."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import get_args

from torch import nn

from tensorpress.calibrate.batches import Batch, CalibrationBatch, collect_batches
from tensorpress.calibrate.gradient_moments import gradient_moments
from tensorpress.calibrate.input_moments import Moments, input_moments
from tensorpress.calibrate.unrolled import unroll
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layer_candidates import applicable_schemes
from tensorpress.planning.layers import Layer
from tensorpress.planning.planner import parse_schemes
from tensorpress.planning.scores import Scored, Scores
from tensorpress.reconstruct.alternating_fit import fit_kernels
from tensorpress.reconstruct.gradient_fit import gradient_losses
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.reconstruct.regression import shrunk
from tensorpress.reconstruct.unfitted import SVD_WEIGHT
from tensorpress.schemes.folding import fold
from tensorpress.schemes.initialization import press_one_layer
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.pressed_layer import Composed
from tensorpress.schemes.registry import scheme as scheme_named
from tensorpress.sensitivity.candidates import make_candidates, response_schemes
from tensorpress.sensitivity.response_moments import Curvature, ResponseMoments, collect_moments

CANDIDATES = 6
"""Candidate ranks per layer and scheme, except channel_svd."""

MAX_COLUMNS = 1536
"""Schemes other than channel_svd compete on kernels with at most this many columns."""

SWEEPS = 1
"""Passes over the kernels of a fit; on ResNet-20 three gave the same plan."""

WORK = 4 * 10**9
"""Limit of multiplications in a fit. It shortens fits of layers such as those with 512 inputs per
response and 256 outputs, where one product with the second moment takes 4·10⁷."""


def kfac_scores(
    model: nn.Module,
    batches: Iterable[CalibrationBatch],
    *,
    of: Curvature = "outputs",
    scheme: str | Sequence[str] = "channel_svd",
    targets: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    seed: int = 0,
) -> Scores:
    r"""Score the ranks of layers by the effect of lost responses on a model's outputs.

    An error :math:`δ_t` of a layer's response at position t changes the outputs by
    :math:`\sum_t J_t δ_t`. If responses, derivatives and positions are taken as independent, the
    expected square is :math:`T \operatorname{tr}(B D)`, where D is the second moment of δ, B that
    of gradients along random directions of the outputs, and T the number of positions per example.
    The best rank-r projection of responses of second moment C leaves
    :math:`T \sum_{i>r} λ_i(B^{1/2} C B^{1/2})`. All layers have the same unit, so the scores of a
    plan add up to an estimate of the model's loss.

    This takes one forward and one backward pass, and another forward pass if other schemes compete.
    Responses for these are not centred, which puts them at a slight disadvantage.

    Parameters
    ----------
    model : nn.Module
        A dense model with trained weights.
    batches : iterable
        Calibration data as for `tensorpress.sensitivity`; labels are ignored.
    of : {"outputs", "loss"}
        "outputs": the squared distance of the outputs, relative to their variance over examples.
        "loss": the divergence of class probabilities, for models that return logits, by gradients
        of the cross entropy at labels drawn from the model's probabilities, or at the next tokens
        of texts for a causal language model of transformers.
    scheme : str or sequence of str
        As for `tensorpress.plan`. For channel_svd, and svd_weight of recurrent weights, all ranks
        are scored by eigenvalues. Other schemes compete with a few ranks each on spatial kernels of
        up to 1,536 columns, fitted in the norm of the inputs.
    targets, skip : sequence of str
        As for `tensorpress.plan`.
    seed : int
        Seed of the directions or labels.

    Returns
    -------
    Scores
        The scores, for the ``allocation`` of `tensorpress.plan`.

    Raises
    ------
    InvalidArgumentError
        If there are no batches, nothing can be pressed, outputs have no gradient or, for "loss",
        are not logits, or responses or gradients are not finite.

    References
    ----------
    Martens, Grosse (2015), "Optimizing neural networks with Kronecker-factored approximate
    curvature"; Grosse, Martens (2016), for convolutions.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    >>> scores = kfac_scores(net, [torch.randn(200, 20)])
    >>> first = [choice.score for choice in scores.layers["0"]]
    >>> first == sorted(first, reverse=True) and first[-1] >= 0
    True
    """
    if of not in get_args(Curvature):
        raise unknown_name("curvature", of, get_args(Curvature))
    schemes, model = parse_schemes(scheme), fold(model)
    layers, _ = DenseModel.from_module(model, None, None).select_layers(targets, skip)
    data = collect_batches(batches, model)
    unrolled, _ = unroll(model)
    methods = response_schemes(unrolled, layers, "channel_svd")
    unit, moments = collect_moments(unrolled, data, list(methods), of, seed)
    result: dict[str, list[Scored]] = {name: [] for name in moments}
    for name, sums in moments.items():
        if not all(bool(x.isfinite().all()) for x in (sums.values, sums.gradients)):
            raise InvalidArgumentError(
                f"layer {name!r}: its responses or their gradients are not finite"
            )
    for name, sums in moments.items():
        method = methods[name]
        if method.name in schemes:
            lost = (sums.lost() * unit).tolist()
            result[name] = [
                Scored(method.name, (rank,), lost[min(rank, len(lost) - 1)], measured=False)
                for (rank,) in method.candidates(layers[name].spec())
            ]
    others = [name for name in schemes if name != "channel_svd"]
    spatial = {name: layers[name] for name in moments if _is_spatial(layers[name])}
    if others and spatial:
        inputs = input_moments(model, data, seed=seed)
        for group in make_candidates(spatial, others, CANDIDATES):
            name = group[0].name
            result[name] += _score_fits(layers[name], group, inputs[name], moments[name], unit)
    if SVD_WEIGHT in schemes and of == "outputs":
        competing = [scheme_named(name) for name in schemes]
        unseen = {
            name: layer
            for name, layer in layers.items()
            if name not in methods
            and any(x.name == SVD_WEIGHT for x in applicable_schemes(layer, competing)[0])
        }
        result |= _score_unseen(model, data, unseen, seed)
    result = {name: choices for name, choices in result.items() if choices}
    if not result:
        raise InvalidArgumentError(
            f"the model has no layer that {', '.join(schemes)} can press by responses"
        )
    choices = {name: tuple(scored) for name, scored in result.items()}
    return Scores(f"curvature of the {of}", 0.0, choices)


def _score_unseen(
    model: nn.Module, batches: Sequence[Batch], layers: Mapping[str, Layer], seed: int
) -> dict[str, list[Scored]]:
    """Score ranks of rebuilt weights whose inputs cannot be observed, by gradient moments."""
    method = scheme_named(SVD_WEIGHT)
    specs = {name: layer.spec(method) for name, layer in layers.items()}
    weights = {name: (layers[name].weight, spec) for name, spec in specs.items()}
    scores = {}
    for name, moments in gradient_moments(model, batches, weights, seed=seed).items():
        lost = gradient_losses(layers[name].kernel(method), moments)
        scores[name] = [
            Scored(SVD_WEIGHT, (rank,), lost[rank], measured=False)
            for (rank,) in method.candidates(specs[name])
        ]
    return scores


def _is_spatial(layer: Layer) -> bool:
    columns = prod(layer.shape[1:])
    return prod(layer.spec().kernel) > 1 and columns <= MAX_COLUMNS


def _score_fits(
    layer: Layer, plans: Sequence[LayerPlan], inputs: Moments, moments: ResponseMoments, unit: float
) -> list[Scored]:
    """Score plans of a layer with kernels fitted in the norm of the inputs."""
    weight, dense = layer.module.get_parameter("weight").detach(), layer.kernel()
    second = shrunk(inputs.means()[0].to(dense), inputs.rows)
    result = []
    for plan in plans:
        pressed = press_one_layer(plan, weight)
        assert isinstance(pressed, Composed)
        composition = Composition.of(pressed)
        fit = fit_kernels(pressed.kernels(), dense, second, composition, sweeps=SWEEPS, work=WORK)
        lost = (dense - composition(fit.kernels)).flatten(2)
        # Σ tr(B ΔW A ΔWᵀ), as for channel_svd
        responses = (lost @ second @ lost.mT).double()
        score = float((moments.gradients / moments.examples * responses).sum())
        result.append(Scored(plan.scheme, plan.ranks, unit * score, measured=False))
    return result
