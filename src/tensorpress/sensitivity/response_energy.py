"""Rank selection on responses: how much of the energy of each layer's responses ranks keep."""

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
"""Schemes whose ranks are those of responses: fewer filters, then 1×1."""

RESPONSES = "responses"
"""What these scores are called as ``ranks`` of a recipe and on the command line."""

_LEAST = 1e-12  # of the energy, so that there is a logarithm


def response_energies(
    model: nn.Module,
    batches: Iterable[CalibrationBatch] | Calibration,
    *,
    scheme: str = "channel_svd",
    targets: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    seed: int = 0,
) -> Scores:
    r"""Score the ranks of layers by the energy that the principal components of responses keep.

    A plan within a budget then makes :math:`\prod_l \sum_{a \le r_l} \sigma_{l,a}` large, the
    product over layers of the energy kept: the score of rank r is the negative logarithm of its
    share. Nothing is run but the dense model, once.

    Parameters
    ----------
    model : nn.Module
        Dense, with trained weights.
    batches : iterable or Calibration
        Calibration data as for `tensorpress.sensitivity`, whose labels are not looked at, or what
        was kept of them.
    scheme : {"channel_svd", "tucker1_out"}
        What the ranks are of.
    targets, skip : sequence of str
        As for `tensorpress.plan`.
    seed : int
        Of the choice of positions.

    Returns
    -------
    Scores
        Give them to `tensorpress.plan` as the ``allocation`` of a budget.

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
    check_by_responses(scheme)
    chosen = scheme_named(scheme)
    layers, _ = DenseModel.from_module(model, None, None).select_layers(targets, skip)
    if not isinstance(batches, Calibration):
        batches = Calibration.collect(model, batches, seed=seed)
    found = {}
    for name, layer in layers.items():
        held = batches.moments.get(name)
        if held is None or len(held.blocks) > 1 or not applicable_schemes(layer, [chosen])[0]:
            continue
        kernel = layer.kernel().flatten(2)
        shares = energy_shares(kernel, held.means()[0].to(kernel))
        found[name] = tuple(
            Scored(scheme, (rank,), -log(max(shares[rank - 1], _LEAST)), measured=False)
            for (rank,) in chosen.candidates(layer.spec())
        )
    found = {name: choices for name, choices in found.items() if choices}
    if not found:
        raise InvalidArgumentError(f"the model has no layer that {scheme} can press by responses")
    return Scores("response energy", 0.0, found)


def check_by_responses(scheme: str) -> None:
    """Raise an `InvalidArgumentError` unless responses say something of a scheme's ranks."""
    if scheme not in BY_RESPONSES:
        raise InvalidArgumentError(
            f"ranks by responses are those of {' and '.join(BY_RESPONSES)}, not of {scheme}"
        )


def energy_shares(kernel: Tensor, second: Tensor) -> list[float]:
    """Return which share of the energy of responses their first 1, 2, … components have.

    Parameters
    ----------
    kernel : Tensor
        (groups, out, columns).
    second : Tensor
        Second moment of the inputs, (groups, columns, columns).

    Examples
    --------
    >>> energy_shares(torch.diag(torch.tensor([4.0, 4.0]))[None], torch.eye(2)[None])
    [0.5, 1.0]
    """
    values = torch.linalg.eigvalsh(kernel @ second @ kernel.mT).clamp_min(0).flip(-1)
    kept = values.cumsum(-1).sum(0)
    total = float(kept[-1])
    return [1.0] * len(kept) if total <= 0 else [min(1.0, x) for x in (kept / total).tolist()]
