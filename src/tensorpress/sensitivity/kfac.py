"""Rank selection by Kronecker-factored curvature: what a layer's error does to the outputs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorpress.calibrate.batches import Batch, CalibrationBatch, collect_batches
from tensorpress.calibrate.outputs import output_tensors, random_direction
from tensorpress.calibrate.patches import can_unfold
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layer_candidates import applicable_schemes
from tensorpress.planning.scores import Scored, Scores
from tensorpress.reconstruct.next_op import find_next_ops
from tensorpress.schemes.layer_spec import CONVS, layer_class
from tensorpress.schemes.registry import scheme as scheme_named

Curvature = Literal["outputs", "loss"]
"""Of what: the squared distance of the outputs, or the cross entropy of their classes."""

_DAMPING = 1e-3  # of the gradients' second moment, relative to its mean eigenvalue


def kfac_scores(
    model: nn.Module,
    batches: Iterable[CalibrationBatch],
    *,
    of: Curvature = "outputs",
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
    targets, skip : sequence of str
        As for `tensorpress.plan`.
    seed : int
        Of directions or labels.

    Returns
    -------
    Scores
        Of channel_svd; give them to `tensorpress.plan` as the ``allocation`` of a budget.

    Raises
    ------
    InvalidArgumentError
        For no batches, nothing to press, or outputs that have no gradient.

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
    chosen = scheme_named("channel_svd")
    layers, _ = DenseModel.from_module(model, None, None).select_layers(targets, skip)
    names = [name for name, layer in layers.items() if applicable_schemes(layer, [chosen])[0]]
    unit, moments = _collect(model, collect_batches(batches, model), names, of, seed)
    result = {}
    for name, layer in moments.items():
        lost = (layer.lost() * unit).tolist()
        result[name] = tuple(
            Scored("channel_svd", (rank,), lost[min(rank, len(lost) - 1)], measured=False)
            for (rank,) in chosen.candidates(layers[name].spec())
        )
    result = {name: choices for name, choices in result.items() if choices}
    if not result:
        raise InvalidArgumentError("the model has no layer that channel_svd can press by responses")
    return Scores(f"curvature of the {of}", 0.0, result)


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
    outputs_energy, examples = _Variance(), 0
    for batch in batches:
        with (
            evaluation_mode(model),
            _frozen(model),
            torch.enable_grad(),
            _watch(layers, moments, normed, batch),
        ):
            outputs = output_tensors(model, batch)
            along = (
                _sampled_loss(outputs, random)
                if of == "loss"
                else random_direction(outputs, random)
            )
            if along.requires_grad:
                torch.autograd.backward(along)
        outputs_energy.add(outputs)
        examples += len(batch)
    for sums in moments.values():
        sums.examples = examples
    energy = outputs_energy.per_example(examples)
    return (0.5 if of == "loss" else 1 / max(energy, 1e-30)), moments


def _has_responses(layer: nn.Module) -> bool:
    """Tell whether a layer's output is that of a weight on vectors, of an Embedding on one-hots."""
    return can_unfold(layer) or layer_class(layer) is nn.Embedding


def _sampled_loss(outputs: Sequence[Tensor], random: torch.Generator) -> Tensor:
    logits = outputs[0].flatten(0, -2)
    labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=random)[:, 0]
    return functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")


class _Variance:
    """The squared deviation of outputs from their mean over examples."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Tensor, float]] = {}

    def add(self, outputs: Sequence[Tensor]) -> None:
        for place, y in enumerate(outputs):
            y = y.detach().double()
            total, squares = self._sums.get(place, (torch.zeros(()), 0.0))
            mean = y.sum(0) if y.ndim else y
            total = total + mean if total.shape in ((), mean.shape) else mean
            self._sums[place] = total, squares + float(y.square().sum())

    def per_example(self, examples: int) -> float:
        result = 0.0
        for total, squares in self._sums.values():
            centred = squares - float(total.square().sum()) / examples
            result += (centred if centred > 1e-6 * squares else squares) / examples
        return result


@contextmanager
def _watch(
    layers: Mapping[str, nn.Module],
    moments: dict[str, _Moments],
    normed: set[str],
    batch: Batch,
) -> Iterator[None]:
    """Add up second moments of responses and of gradients by them, of a batch's pass.

    Padding does not count.
    """

    def make_hook(name: str, layer: nn.Module) -> Callable[..., Tensor]:
        weight = layer.get_parameter("weight").detach()
        by_inputs = isinstance(layer, nn.Linear) and weight.shape[0] > weight.shape[1]
        groups = layer.groups if isinstance(layer, CONVS) else 1

        def rows(y: Tensor) -> Tensor:
            y = batch.unpadded(layer, y)
            if isinstance(layer, CONVS):
                y = y if y.ndim == weight.ndim else y[None]
                y = y.movedim(1, -1)
            return y.reshape(-1, groups, y.shape[-1] // groups)

        def forward(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            result = output + torch.zeros((), dtype=output.dtype, requires_grad=True)
            if not result.requires_grad:  # in a part of the model that runs without gradients
                return output
            bias = layer._parameters.get("bias")
            with torch.no_grad():
                if by_inputs:
                    seen = rows((*args, *kwargs.values())[0].detach())
                else:
                    seen = rows(output.detach())
                    if bias is not None:
                        seen = seen - bias.reshape(groups, -1)
                if name not in moments:
                    centred = bias is not None or name in normed
                    moments[name] = _Moments.zeros(groups, seen.shape[-1], centred)
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
