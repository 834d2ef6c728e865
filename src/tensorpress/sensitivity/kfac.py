"""Rank selection by Kronecker-factored curvature: what a layer's error does to the outputs."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.calibrate.batches import Batch, CalibrationBatch, collect_batches
from tensorpress.calibrate.input_moments import Moments, input_moments
from tensorpress.calibrate.outputs import Deviation, output_tensors, random_direction, token_mask
from tensorpress.calibrate.patches import can_unfold, output_rows
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.measure.cost import evaluation_mode
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layer_candidates import applicable_schemes
from tensorpress.planning.layers import Layer
from tensorpress.planning.planner import parse_schemes
from tensorpress.planning.scores import Scored, Scores
from tensorpress.reconstruct.alternating_fit import fit_kernels
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.reconstruct.next_op import find_next_ops
from tensorpress.reconstruct.regression import shrunk
from tensorpress.schemes.initialization import press_one_layer
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import layer_class
from tensorpress.schemes.pressed_layer import Composed
from tensorpress.schemes.registry import scheme as scheme_named
from tensorpress.sensitivity.candidates import make_candidates

Curvature = Literal["outputs", "loss"]
"""Of what: the squared distance of the outputs, or the cross entropy of their classes."""

CANDIDATES = 6
"""Ranks of a layer for every scheme other than channel_svd."""

MAX_COLUMNS = 1536
"""Largest number of columns of a kernel on which schemes other than channel_svd compete."""

SWEEPS = 1
"""Passes over the kernels of a fit: more do not change which schemes win."""

logger = logging.getLogger("tensorpress.sensitivity")

_DAMPING = 1e-3  # of the gradients' second moment, relative to its mean eigenvalue


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
    r"""Score the ranks of layers by what the responses they lose do to a model's outputs.

    An error :math:`δ_t` of a layer's response at position t changes the outputs by
    :math:`\sum_t J_t δ_t`. With responses and derivatives taken as independent, and positions as
    well, its expected square is :math:`T \operatorname{tr}(B D)`, where D is the second moment of
    δ, B that of the gradients along random directions of the outputs and T the number of positions
    of an example. The best rank-r projection of responses of second moment C leaves
    :math:`T \sum_{i>r} λ_i(B^{1/2} C B^{1/2})`: the unit is the same for all layers, so that the
    scores of a plan add up to an estimate of what its model loses. One forward and one backward
    pass are run.

    Parameters
    ----------
    model : nn.Module
        Dense, with trained weights.
    batches : iterable
        Calibration data as for `tensorpress.sensitivity`; labels are not looked at.
    of : {"outputs", "loss"}
        "outputs": the squared distance of the outputs, relative to their variance over examples;
        "loss": the divergence of the probabilities of classes, whose logits the model returns, by
        gradients of the cross entropy at labels drawn from the model's own probabilities.
    scheme : str or sequence of str
        As for `tensorpress.plan`. Of channel_svd all ranks are scored, by eigenvalues. Other
        schemes compete on kernels larger than 1 and up to 1,536 columns, with a few ranks each:
        their kernels are fitted in the norm of the inputs.
    targets, skip : sequence of str
        As for `tensorpress.plan`.
    seed : int
        Of directions or labels.

    Returns
    -------
    Scores
        Give them to `tensorpress.plan` as the ``allocation`` of a budget.

    Raises
    ------
    InvalidArgumentError
        For no batches, nothing to press, outputs that have no gradient, or that are no logits for
        "loss", and responses or gradients that are not finite.

    References
    ----------
    Martens, Grosse (2015), "Optimizing neural networks with Kronecker-factored approximate
    curvature"; Grosse, Martens (2016), for convolutions.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    >>> scores = kfac_scores(net, [torch.randn(200, 20)])
    >>> first = [choice.score for choice in scores.layers["0"]]
    >>> first == sorted(first, reverse=True) and first[-1] >= 0
    True
    """
    if of not in get_args(Curvature):
        raise unknown_name("curvature", of, get_args(Curvature))
    chosen = scheme_named("channel_svd")
    schemes = parse_schemes(scheme)
    layers, _ = DenseModel.from_module(model, None, None).select_layers(targets, skip)
    names = [name for name, layer in layers.items() if applicable_schemes(layer, [chosen])[0]]
    data = collect_batches(batches, model)
    unit, moments = _collect(model, data, names, of, seed)
    result: dict[str, list[Scored]] = {name: [] for name in moments}
    if "channel_svd" in schemes:
        for name, sums in moments.items():
            if not all(bool(x.isfinite().all()) for x in (sums.values, sums.gradients)):
                raise InvalidArgumentError(
                    f"layer {name!r}: its responses or their gradients are not finite, or overflow"
                )
            lost = (sums.lost() * unit).tolist()
            result[name] = [
                Scored("channel_svd", (rank,), lost[min(rank, len(lost) - 1)], measured=False)
                for (rank,) in chosen.candidates(layers[name].spec())
            ]
    others = [name for name in schemes if name != "channel_svd"]
    spatial = {name: layers[name] for name in moments if _is_spatial(layers[name])}
    if others and spatial:
        inputs = input_moments(model, data, seed=seed)
        for group in make_candidates(spatial, others, CANDIDATES):
            name = group[0].name
            result[name] += _score_fits(layers[name], group, inputs[name], moments[name], unit)
    result = {name: choices for name, choices in result.items() if choices}
    if not result:
        raise InvalidArgumentError(
            f"the model has no layer that {', '.join(schemes)} can press by responses"
        )
    choices = {name: tuple(scored) for name, scored in result.items()}
    return Scores(f"curvature of the {of}", 0.0, choices)


def _is_spatial(layer: Layer) -> bool:
    columns = prod(layer.shape[1:])
    return prod(layer.spec().kernel) > 1 and columns <= MAX_COLUMNS


def _score_fits(
    layer: Layer, plans: Sequence[LayerPlan], inputs: Moments, moments: "_Moments", unit: float
) -> list[Scored]:
    """Return plans of a layer with what they lose, their kernels fitted in the inputs' norm."""
    weight, dense = layer.module.get_parameter("weight").detach(), layer.kernel()
    second = shrunk(inputs.means()[0].to(dense), inputs.rows)
    result = []
    for plan in plans:
        pressed = press_one_layer(plan, weight)
        assert isinstance(pressed, Composed)
        composition = Composition.of(pressed)
        fit = fit_kernels(pressed.kernels(), dense, second, composition, sweeps=SWEEPS)
        lost = (dense - composition(fit.kernels)).flatten(2)
        # Σ tr(B ΔW A ΔWᵀ), as of channel_svd
        responses = (lost @ second @ lost.mT).double()
        score = float((moments.gradients / moments.examples * responses).sum())
        result.append(Scored(plan.scheme, plan.ranks, unit * score, measured=False))
    return result


@dataclass
class _Moments:
    """Sums of second moments of a layer's responses and of the gradients by them.

    Or of its inputs x and of Wᵀg, on whichever side the layer has fewer channels: the eigenvalues
    of A^½ (Wᵀ B W) A^½ are those of B^½ (W A Wᵀ) B^½.
    """

    values: Tensor  # (groups, n, n), float64
    mean: Tensor  # (groups, n)
    gradients: Tensor  # (groups, n, n)
    centred: bool
    rows: int = 0
    examples: int = 0
    has_gradients: bool = False

    @staticmethod
    def zeros(groups: int, channels: int, centred: bool) -> "_Moments":
        square = torch.zeros(groups, channels, channels, dtype=torch.float64)
        return _Moments(square, square[..., 0].clone(), square.clone(), centred)

    def add_values(self, rows: Tensor) -> None:
        """Add responses, (rows, groups, n)."""
        columns = rows.movedim(0, -1).float()
        self.values += (columns @ columns.mT).to(self.values)
        self.mean += columns.sum(-1).to(self.mean)
        self.rows += len(rows)

    def add_gradients(self, rows: Tensor) -> None:
        """Add gradients, (rows, groups, n)."""
        self.has_gradients = True
        columns = rows.movedim(0, -1).float()
        self.gradients += (columns @ columns.mT).to(self.gradients)

    def lost(self) -> Tensor:
        """Return for rank 0, 1, … what is lost of an example, in the unit of the outputs."""
        mean = self.mean / self.rows
        second = self.values / self.rows
        if self.centred:  # the bias takes the mean
            second = second - mean[..., None] * mean[..., None, :]
        # Σ over positions of an example: T · mean = sum / examples
        gradients = self.gradients / self.examples
        level = gradients.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
        eye = torch.eye(gradients.shape[-1], dtype=gradients.dtype)
        values, vectors = torch.linalg.eigh(gradients + _DAMPING * level * eye)
        root = vectors * values.clamp_min(0).sqrt()[:, None] @ vectors.mT
        # λ of B^½ C B^½, the largest first; Σ_{i>r} λ_i for r = 0, 1, …
        energies = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).flip(-1).sum(0)
        return torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)])


def _collect(
    model: nn.Module, batches: Sequence[Batch], names: Sequence[str], of: Curvature, seed: int
) -> tuple[float, dict[str, _Moments]]:
    """Run the model forward and back on every batch; return the unit of scores, and moments."""
    random = torch.Generator().manual_seed(seed)
    modules = {name: model.get_submodule(name) for name in names}
    layers = {name: layer for name, layer in modules.items() if _has_responses(layer)}
    normed = {name for name, layer in layers.items() if layer._parameters.get("bias") is None}
    normed -= {name for name, layer in layers.items() if isinstance(layer, nn.Embedding)}
    normed = _followed_by_norm(model, normed, batches[0])
    moments: dict[str, _Moments] = {}
    without: set[str] = set()  # layers in parts of the model that run without gradients
    deviations: dict[int, Deviation] = {}
    examples = 0
    for batch in batches:
        with (
            evaluation_mode(model),
            _frozen(model),
            torch.enable_grad(),
            _watch(layers, moments, normed, without, batch),
        ):
            outputs = output_tensors(model, batch)
            along = (
                _sampled_loss(outputs, random)
                if of == "loss"
                else random_direction(outputs, random)
            )
            if along.requires_grad:
                torch.autograd.backward(along)
        for place, y in enumerate(outputs):
            deviations.setdefault(place, Deviation()).add(y.detach(), token_mask(y, batch))
        examples += len(batch)
    moments = {name: sums for name, sums in moments.items() if sums.has_gradients}
    if names and not moments:
        raise InvalidArgumentError(
            "the outputs have no gradient by any layer's responses: the model runs without "
            "gradients (no_grad, inference_mode or detach)"
        )
    for name in names:
        if name not in moments:
            logger.warning("layer %s is not scored: %s", name, _reason(name, layers, without))
    for sums in moments.values():
        sums.examples = examples
    energy = sum(deviation.energy for deviation in deviations.values()) / examples
    return (0.5 if of == "loss" else 1 / max(energy, 1e-30)), moments


def _reason(name: str, layers: Mapping[str, nn.Module], without: set[str]) -> str:
    if name not in layers:
        return "it multiplies no inputs with its weight"
    if name in without:
        return "it is called in a part of the model that runs without gradients"
    return "calibration data do not call it"


def _has_responses(layer: nn.Module) -> bool:
    """Tell whether a layer's output is that of a weight on vectors, of an Embedding on one-hots."""
    return can_unfold(layer) or layer_class(layer) is nn.Embedding


def _sampled_loss(outputs: Sequence[Tensor], random: torch.Generator) -> Tensor:
    if outputs[0].ndim < 2:
        raise InvalidArgumentError(
            "the curvature of the loss needs logits (examples, classes) as first output, got shape "
            f"{tuple(outputs[0].shape)}"
        )
    logits = outputs[0].flatten(0, -2)
    if not bool(logits.detach().isfinite().any(-1).all()) or bool(logits.detach().isnan().any()):
        raise InvalidArgumentError("the model returns logits that are not finite")
    labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=random)[:, 0]
    return functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")


@contextmanager
def _watch(
    layers: Mapping[str, nn.Module],
    moments: dict[str, _Moments],
    normed: set[str],
    without: set[str],
    batch: Batch,
) -> Iterator[None]:
    """Add up second moments of responses and of gradients by them, of a batch's pass.

    Padding does not count.
    """

    def make_hook(name: str, layer: nn.Module) -> Callable[..., Tensor]:
        weight = layer.get_parameter("weight").detach()
        by_inputs = isinstance(layer, nn.Linear) and weight.shape[0] > weight.shape[1]

        def rows(y: Tensor) -> Tensor:
            return output_rows(layer, batch.unpadded(layer, y))

        def forward(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            result = output + torch.zeros((), dtype=output.dtype, requires_grad=True)
            if not result.requires_grad:  # in a part of the model that runs without gradients
                without.add(name)
                return output
            bias = layer._parameters.get("bias")
            with torch.no_grad():
                if by_inputs:
                    seen = batch.unpadded(layer, (*args, *kwargs.values())[0].detach())
                    seen = seen.reshape(-1, 1, seen.shape[-1])
                else:
                    seen = rows(output.detach())
                    if bias is not None:
                        seen = seen - bias.reshape(seen.shape[1:])
                if name not in moments:
                    centred = bias is not None or name in normed
                    moments[name] = _Moments.zeros(seen.shape[1], seen.shape[2], centred)
                moments[name].add_values(seen)

            @torch.no_grad()
            def backward(gradient: Tensor) -> None:
                slopes = rows(gradient)
                moments[name].add_gradients(slopes @ weight.to(slopes) if by_inputs else slopes)

            result.register_hook(backward)  # type: ignore[no-untyped-call]
            return result

        return forward

    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_hook(make_hook(name, layer), with_kwargs=True)
            stack.callback(hook.remove)
        yield


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradients of the parameters: only those of outputs are needed."""
    required = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, value in required.items():
            parameter.requires_grad_(value)


def _followed_by_norm(model: nn.Module, names: set[str], batch: Batch) -> set[str]:
    after = find_next_ops(model, sorted(names), batch)
    return {name for name, following in after.items() if following.norm is not None}
