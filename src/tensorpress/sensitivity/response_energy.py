"""Rank selection by the energy of the principal components of each layer's responses."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from math import log

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, CalibrationBatch, collect_batches
from tensorpress.calibrate.calibration import Calibration
from tensorpress.calibrate.input_moments import Moments
from tensorpress.calibrate.unrolled import unroll
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layers import Layer
from tensorpress.planning.scores import Scored, Scores
from tensorpress.reconstruct.samples import ROWS, Positions, sample_responses
from tensorpress.reconstruct.second_moment import BlockMoment
from tensorpress.schemes.folding import fold
from tensorpress.sensitivity.candidates import response_schemes
from tensorpress.sensitivity.response_moments import has_responses

BY_RESPONSES = ("channel_svd", "tucker1_out")
"""Schemes whose rank is the rank of the responses: fewer filters, then 1×1."""

RESPONSES = "responses"
"""The name of these scores in recipes and on the command line."""

logger = logging.getLogger("tensorpress.sensitivity")

_LEAST = 1e-12  # smallest share of the energy, so that its logarithm is finite


def response_energies(
    model: nn.Module,
    batches: Iterable[CalibrationBatch] | Calibration,
    *,
    scheme: str = "channel_svd",
    targets: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    seed: int = 0,
) -> Scores:
    r"""Score the ranks of layers by the energy of the first principal components of responses.

    The score of rank r is −ln of the share of energy in the first r components. So a plan within a
    budget maximizes the product of these shares over layers,
    :math:`\prod_l \sum_{a \le r_l} \sigma_{l,a}`. Only the dense model runs, once.

    Parameters
    ----------
    model : nn.Module
        A dense model with trained weights.
    batches : iterable or Calibration
        Calibration data as for `tensorpress.sensitivity` (labels are ignored), or their statistics.
    scheme : {"channel_svd", "tucker1_out"}
        The scheme that presses the layers. With channel_svd, recurrent weights are scored too, for
        svd_weight.
    targets, skip : sequence of str
        Layers to score, as for `tensorpress.plan`.
    seed : int
        Seed of the sampled positions.

    Returns
    -------
    Scores
        The scores, for the ``allocation`` of `tensorpress.plan`.

    Raises
    ------
    InvalidArgumentError
        If the scheme is another one, there are no batches, nothing can be pressed, or responses
        are not finite.

    References
    ----------
    Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification
    and detection" (rank selection), where the budget is divided greedily.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    >>> scores = response_energies(net, [torch.randn(200, 20)])
    >>> first = [choice.score for choice in scores.layers["0"]]
    >>> first == sorted(first, reverse=True) and first[-1] >= 0
    True
    """
    check_response_scheme(scheme)
    model = fold(model)
    layers, _ = DenseModel.from_module(model, None, None).select_layers(targets, skip)
    unrolled, _ = unroll(model)
    methods = response_schemes(unrolled, layers, scheme)
    ranks = {
        name: [rank for (rank,) in method.candidates(layers[name].spec())]
        for name, method in methods.items()
    }
    names = [name for name, candidates in ranks.items() if candidates]
    if isinstance(batches, Calibration):
        seconds = _from_inputs(layers, names, batches.moments)
    else:
        seconds = _from_outputs(unrolled, names, collect_batches(batches, model), seed)
    scores = {}
    for name in names:
        if name not in seconds:
            logger.warning("layer %s is not scored: the calibration data do not reach it", name)
            continue
        if not bool(seconds[name].isfinite().all()):
            raise InvalidArgumentError(f"layer {name!r}: its responses are NaN or infinite")
        shares = energy_shares(seconds[name])
        scores[name] = tuple(
            Scored(methods[name].name, (rank,), -log(max(shares[rank - 1], _LEAST)), measured=False)
            for rank in ranks[name]
        )
    if not scores:
        raise InvalidArgumentError(f"the model has no layer that {scheme} can press by responses")
    return Scores("response energy", 0.0, scores)


def check_response_scheme(scheme: str) -> None:
    """Raise an `InvalidArgumentError` unless the rank of a scheme is the rank of responses."""
    if scheme not in BY_RESPONSES:
        raise InvalidArgumentError(
            f"responses give ranks for {' and '.join(BY_RESPONSES)}, not for {scheme}"
        )


def _from_inputs(
    layers: Mapping[str, Layer], names: Sequence[str], moments: Mapping[str, Moments]
) -> dict[str, Tensor]:
    """Return the second moments of responses from those of inputs: E y yᵀ = W E[x xᵀ] Wᵀ."""
    result = {}
    for name in names:
        if name in moments:
            kernel = layers[name].kernel().flatten(2)
            inputs = BlockMoment([block.to(kernel) for block in moments[name].means()])
            result[name] = kernel @ inputs @ kernel.mT
    return result


def _from_outputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], seed: int
) -> dict[str, Tensor]:
    """Return the second moments of responses without the bias."""
    layers = {name: model.get_submodule(name) for name in names}
    names = [name for name, layer in layers.items() if has_responses(layer)]
    positions = Positions(max(1, ROWS // len(batches)), seed)
    responses = sample_responses(model, names, batches, positions).rows
    for name, rows in responses.items():
        bias = layers[name]._parameters.get("bias")
        y = (rows if bias is None else rows - bias.detach().reshape(rows.shape[1:])).movedim(0, 1)
        responses[name] = (y.mT @ y).double() / len(rows)
    return responses


def energy_shares(second: Tensor) -> list[float]:
    """Return the shares of the energy of responses in their first 1, 2, … components.

    ``second`` is their second moment, (groups, out, out).

    Examples
    --------
    >>> energy_shares(torch.diag(torch.tensor([4.0, 4.0]))[None])
    [0.5, 1.0]
    """
    # eigenvalues σ₁ ≥ σ₂ ≥ …
    values = torch.linalg.eigvalsh(second).clamp_min(0).flip(-1)
    # e_r = Σ_groups Σ_{a ≤ r} σ_a
    energy = values.cumsum(-1).sum(0)
    total = float(energy[-1])
    return [1.0] * len(energy) if total <= 0 else [min(1.0, x) for x in (energy / total).tolist()]
