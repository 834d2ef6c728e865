"""Rank selection by the energy of the principal components of each layer's responses."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, CalibrationBatch, collect_batches, run_model
from tensorpress.calibrate.calibration import Calibration
from tensorpress.calibrate.patches import can_unfold
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layer_candidates import applicable_schemes
from tensorpress.planning.layers import Layer
from tensorpress.planning.scores import Scored, Scores
from tensorpress.schemes.layer_spec import CONVS
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
    candidates = {
        name: ranks
        for name, layer in layers.items()
        if applicable_schemes(layer, [method])[0] and (ranks := method.candidates(layer.spec()))
    }
    if isinstance(batches, Calibration):
        moments = _moments_from_inputs(layers, candidates, batches)
    else:
        moments = _response_moments(model, candidates, collect_batches(batches, model))
    scores = {}
    for name, moment in moments.items():
        shares = energy_shares(moment)
        scores[name] = tuple(
            Scored(scheme, (rank,), -log(max(shares[rank - 1], _LEAST)), measured=False)
            for (rank,) in candidates[name]
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


def energy_shares(second: Tensor) -> list[float]:
    """Return the shares of the energy of responses in their first 1, 2, … components.

    ``second`` is the second moment of the responses, (groups, n, n).

    Examples
    --------
    >>> energy_shares(torch.diag(torch.tensor([4.0, 4.0]))[None])
    [0.5, 1.0]
    """
    # E y yᵀ has the eigenvalues σ₁ ≥ σ₂ ≥ …
    values = torch.linalg.eigvalsh(second).clamp_min(0).flip(-1)
    # e_r = Σ_groups Σ_{a ≤ r} σ_a
    energy = values.cumsum(-1).sum(0)
    total = float(energy[-1])
    return [1.0] * len(energy) if total <= 0 else [min(1.0, x) for x in (energy / total).tolist()]


def _moments_from_inputs(
    layers: Mapping[str, Layer], names: Iterable[str], calibration: Calibration
) -> dict[str, Tensor]:
    """Return E y yᵀ = W E[x xᵀ] Wᵀ of layers whose inputs' moments are whole."""
    result = {}
    for name in names:
        moments = calibration.moments.get(name)
        if moments is not None and len(moments.blocks) == 1:
            kernel = layers[name].kernel().flatten(2)
            result[name] = kernel @ moments.means()[0].to(kernel) @ kernel.mT
    return result


@torch.no_grad()
def _response_moments(
    model: nn.Module, names: Iterable[str], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Return Σ y yᵀ of layers' responses without bias, (groups, n, n), over all their calls.

    A Linear with more outputs than inputs has (WᵀW)^½ Σ x xᵀ (WᵀW)^½ in its place: the eigenvalues
    are the same. No convolution is unfolded, so a wide kernel costs no more than a narrow one.
    """
    sums: dict[str, Tensor] = {}
    layers = {name: layer for name in names if can_unfold(layer := model.get_submodule(name))}
    with evaluation_mode(model):
        for batch in batches:
            with ExitStack() as stack:
                for name, layer in layers.items():
                    hook = _adder(sums, name, layer, batch)
                    stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
                run_model(model, batch)
    for name in sums:
        layer = layers[name]
        if _by_inputs(layer):
            weight = layer.get_parameter("weight").double()
            values, vectors = torch.linalg.eigh(weight.mT @ weight)
            root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
            sums[name] = root @ sums[name] @ root
    return sums


def _by_inputs(layer: nn.Module) -> bool:
    weight = layer.get_parameter("weight")
    return isinstance(layer, nn.Linear) and weight.shape[0] > weight.shape[1]


def _adder(
    sums: dict[str, Tensor], name: str, layer: nn.Module, batch: Batch
) -> Callable[..., None]:
    """Return a forward hook that adds what a layer responds."""

    def add(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        bias = layer._parameters.get("bias")
        if _by_inputs(layer):
            rows = batch.unpadded(layer, (*args, *kwargs.values())[0])
        elif isinstance(layer, CONVS):
            batched = output.ndim == layer.weight.ndim
            rows = output.movedim(1 if batched else 0, -1)
        else:
            rows = batch.unpadded(layer, output)
        if bias is not None and not _by_inputs(layer):
            rows = rows - bias
        groups = layer.groups if isinstance(layer, CONVS) else 1
        columns = rows.reshape(-1, groups, rows.shape[-1] // groups).movedim(0, -1).float()
        moment = (columns @ columns.mT).double()
        sums[name] = sums[name] + moment if name in sums else moment

    return add
