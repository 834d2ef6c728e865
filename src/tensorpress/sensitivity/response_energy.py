"""Rank selection by the energy of the principal components of each layer's responses."""

from collections.abc import Iterable, Sequence
from math import log

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import CalibrationBatch
from tensorpress.calibrate.calibration import Calibration
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layer_candidates import applicable_schemes
from tensorpress.planning.scores import Scored, Scores
from tensorpress.schemes.registry import scheme as scheme_named

BY_RESPONSES = ("channel_svd", "tucker1_out")
"""Schemes whose rank is the rank of the responses: fewer filters, then 1×1."""

RESPONSES = "responses"
"""The name of these scores in recipes and on the command line."""

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

    The score of rank r is −ln of the share of the energy in the first r components, so that a plan
    within a budget maximizes :math:`\prod_l \sum_{a \le r_l} \sigma_{l,a}`, the product of these
    shares over layers. Only the dense model runs, once.

    Parameters
    ----------
    model : nn.Module
        A dense model with trained weights.
    batches : iterable or Calibration
        Calibration data as for `tensorpress.sensitivity`, whose labels are ignored, or the
        statistics of them.
    scheme : {"channel_svd", "tucker1_out"}
        The scheme that presses the layers.
    targets, skip : sequence of str
        Layers to score, as for `tensorpress.plan`.
    seed : int
        Seed of the sampled positions.

    Returns
    -------
    Scores
        The scores, for the ``allocation`` of a budget in `tensorpress.plan`.

    Raises
    ------
    InvalidArgumentError
        For another scheme, no batches, or nothing to press.

    References
    ----------
    Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification
    and detection" (rank selection), who spread the budget greedily.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    >>> scores = response_energies(net, [torch.randn(200, 20)])
    >>> first = [choice.score for choice in scores.layers["0"]]
    >>> first == sorted(first, reverse=True) and first[-1] >= 0
    True
    """
    check_response_scheme(scheme)
    method = scheme_named(scheme)
    layers, _ = DenseModel.from_module(model, None, None).select_layers(targets, skip)
    if not isinstance(batches, Calibration):
        batches = Calibration.collect(model, batches, seed=seed)
    scores = {}
    for name, layer in layers.items():
        moments = batches.moments.get(name)
        if moments is None or len(moments.blocks) > 1:
            continue
        ranks = method.candidates(layer.spec()) if applicable_schemes(layer, [method])[0] else []
        if not ranks:
            continue
        kernel = layer.kernel().flatten(2)
        shares = energy_shares(kernel, moments.means()[0].to(kernel))
        scores[name] = tuple(
            Scored(scheme, (rank,), -log(max(shares[rank - 1], _LEAST)), measured=False)
            for (rank,) in ranks
        )
    if not scores:
        raise InvalidArgumentError(f"the model has no layer that {scheme} can press by responses")
    return Scores("response energy", 0.0, scores)


def check_response_scheme(scheme: str) -> None:
    """Raise an `InvalidArgumentError` unless the rank of a scheme is the rank of responses."""
    if scheme not in BY_RESPONSES:
        raise InvalidArgumentError(
            f"ranks by responses are those of {' and '.join(BY_RESPONSES)}, not of {scheme}"
        )


def energy_shares(kernel: Tensor, second: Tensor) -> list[float]:
    """Return the shares of the energy of responses in their first 1, 2, … components.

    ``kernel`` is (groups, out, columns), ``second`` the second moment of the inputs,
    (groups, columns, columns).

    Examples
    --------
    >>> energy_shares(torch.diag(torch.tensor([4.0, 4.0]))[None], torch.eye(2)[None])
    [0.5, 1.0]
    """
    # E y yᵀ = W E[x xᵀ] Wᵀ, eigenvalues σ₁ ≥ σ₂ ≥ …
    values = torch.linalg.eigvalsh(kernel @ second @ kernel.mT).clamp_min(0).flip(-1)
    # e_r = Σ_groups Σ_{a ≤ r} σ_a
    energy = values.cumsum(-1).sum(0)
    total = float(energy[-1])
    return [1.0] * len(energy) if total <= 0 else [min(1.0, x) for x in (energy / total).tolist()]
